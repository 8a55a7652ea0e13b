"""What every test file may use: small worlds, and a terminal that leaves no traces in the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[1]


class _PlainCheckout:
    """The checkout is no package of tests: its directory may have a name that is no identifier, such as fedrec-main."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == _CHECKOUT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_PlainCheckout())


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


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory and cache; what the command line does to logging is undone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", os.environ.get("FLWR_TELEMETRY_ENABLED", "0"))
    monkeypatch.setenv("COLUMNS", "120")
    loggers = [logging.getLogger(name) for name in (None, "flwr", "fedrec")]
    before = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    yield tmp_path
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.level, logger.handlers, logger.propagate = level, handlers, propagate
