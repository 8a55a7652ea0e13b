"""Flower's own engines for the tests; whatever happens, nothing of them outlives the tests."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # killed_commands, same_run, flower_processes, site_of_page
pytest.register_assert_rewrite("same_run")

from flower_processes import Deployment, Flower, Simulation  # noqa: E402
from site_of_page import Site  # noqa: E402

_NEEDED = Path("/proc/self/environ")


@contextmanager
def _stopped(engine: Flower) -> Iterator[None]:
    """Everything is ended after the block, and nothing has to be killed."""
    try:
        yield
    finally:
        killed = engine.stop()
    assert killed == []


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """Flower's simulation engine."""
    if not _NEEDED.exists():
        pytest.skip("needs /proc to find what Flower starts in the background")
    ray = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets there, whose paths are limited
    engine = Simulation(tmp_path_factory.mktemp("flower"), Path(ray))
    try:
        with _stopped(engine):
            yield engine
    finally:
        shutil.rmtree(ray, ignore_errors=True)


@pytest.fixture
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink and SuperNodes, to be started by the test."""
    if not _NEEDED.exists():
        pytest.skip("needs /proc to find what Flower starts in the background")
    engine = Deployment(tmp_path_factory.mktemp("flower"))
    with _stopped(engine):
        yield engine


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Where docs/deploy.md is followed."""
    missing = [name for name in ("openssl", "ssh-keygen") if shutil.which(name) is None]
    if missing or not _NEEDED.exists():
        pytest.skip(f"needs /proc and openssl and ssh-keygen, which the page uses; missing: {missing}")
    place = Site(tmp_path_factory.mktemp("site"))
    with _stopped(place):
        yield place
