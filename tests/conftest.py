"""What every test file may use: small worlds, and a terminal that leaves no traces in the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fedrec", deadline=None)  # a busy machine is no mistake
settings.load_profile("fedrec")

_SMALL = (
    "data.name=synthetic",
    "data.devices=60",
    "data.items=150",
    "data.interactions=10",
    "server.rounds=4",
    "evaluation.every=2",
    "evaluation.resamples=100",
    "evaluation.baselines=false",
    "engine.threads=1",
)


@pytest.fixture(scope="session")
def small_overrides() -> tuple[str, ...]:
    """Overrides that make any run small."""
    return _SMALL


@pytest.fixture(scope="session")
def small_settings() -> list[str]:
    """The same as command-line arguments."""
    return [part for override in _SMALL for part in ("--set", override)]


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """What the command line does to logging is undone after every test."""
    loggers = [logging.getLogger(name) for name in (None, "flwr", "fedrec")]
    before = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory and cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", os.environ.get("FLWR_TELEMETRY_ENABLED", "0"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path
