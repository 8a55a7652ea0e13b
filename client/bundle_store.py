"""The bundles of a device: the one that is served and the one before it, each verified whenever it is read.

A directory with ``state.json`` and the bundles that it names, ``<digest>.bundle``. An adoption writes the bundle, then
replaces ``state.json``, which is the one step that counts, then removes what is no longer named. Killed at any point,
the device has either the old bundle or the new one. Versions only grow: the highest one that was ever adopted is kept,
so that no older bundle can be played back, however well it is signed. A rollback must be asked for, leads only to the
bundle that was served before, and does not make room for the version that it leaves.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import _durable
from ..errors import BundleError
from .bundle import Bundle, load_bundle
from .bundle_file import LIMIT, read

_STATE, _LOCK, _SUFFIX = "state.json", "lock", ".bundle"
_STATE_LIMIT = 10_000
_DIGEST = re.compile(r"[0-9a-f]{64}|")


@dataclass(frozen=True)
class _State:
    """What ``state.json`` holds: digests (empty: none) and the highest version adopted so far (0: none)."""

    current: str = ""
    previous: str = ""
    highest: int = 0


class BundleStore:
    """Adopts, keeps and rolls back the bundles of one device."""

    def __init__(self, directory: Path | str, keys: Collection[bytes], *, limit: int = LIMIT) -> None:
        """Keep bundles in ``directory``, created if missing, that one of the pinned ``keys`` has signed."""
        self._directory = Path(directory)
        self._keys = tuple(keys)
        self._limit = limit

    def current(self) -> Bundle | None:
        """The bundle that is served; none before the first adoption.

        Raises:
            BundleError: it, or the store, was damaged.
        """
        state = self._state()
        return self._load(state.current, "roll back or adopt a newer one") if state.current else None

    def adopt(self, source: Path | str | bytes) -> Bundle:
        """Verify a bundle and serve it from now on; the one before is kept.

        Raises:
            BundleError: it is not to be trusted, its version is none above all that were adopted, or it can't be
                written. The bundle that is served stays.
        """
        content = source if isinstance(source, bytes) else read(source, self._limit)
        bundle = load_bundle(content, self._keys, limit=self._limit)
        with self._writing():
            state = self._state()
            if bundle.version <= state.highest:
                raise BundleError(
                    f"expected a bundle above version {state.highest}, got version {bundle.version}; older ones come "
                    "back by a rollback only"
                )
            if not (self._directory / _STATE).exists():
                self._replace(_State())
            _durable.replace_file(self._path(bundle.digest), content)
            self._replace(_State(bundle.digest, state.current, bundle.version))
        return bundle

    def rollback(self) -> Bundle:
        """Serve the bundle before the current one again.

        Raises:
            BundleError: there is none, or it was damaged. The bundle that is served stays.
        """
        with self._writing():
            state = self._state()
            if not state.previous:
                raise BundleError("expected a bundle to go back to, got none: only the last one before is kept")
            bundle = self._load(state.previous, "adopt a newer one")
            self._replace(replace(state, current=state.previous, previous=""))
        return bundle

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest}{_SUFFIX}"

    def _load(self, digest: str, cure: str) -> Bundle:
        try:
            bundle = load_bundle(self._path(digest), self._keys, limit=self._limit)
        except BundleError as error:
            raise BundleError(f"the bundle in {self._directory} can't be served ({error}); {cure}") from None
        if bundle.digest != digest:
            raise BundleError(f"the bundle in {self._directory} is not the one that was adopted; {cure}")
        return bundle

    def _state(self) -> _State:
        path = self._directory / _STATE
        if not path.exists() and not path.is_symlink():
            if list(self._directory.glob(f"*{_SUFFIX}")):
                raise BundleError(f"expected {path} beside the bundles, got none: which versions came is not known")
            return _State()
        try:
            found = _State(**json.loads(read(path, _STATE_LIMIT)))
        except (ValueError, TypeError, RecursionError):
            found = _State(highest=-1)
        known = all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in (found.current, found.previous))
        if not known or type(found.highest) is not int or found.highest < bool(found.current):
            raise BundleError(f"expected the state of a bundle store in {path}, got something else; restore a copy")
        return found

    def _replace(self, state: _State) -> None:
        """Make ``state`` count, then remove the bundles that it does not name."""
        _durable.replace_file(self._directory / _STATE, (json.dumps(asdict(state)) + "\n").encode())
        for path in self._directory.glob(f"*{_SUFFIX}"):
            if path.name.removesuffix(_SUFFIX) not in (state.current, state.previous):
                path.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time; a disk that fails is told in a sentence."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BundleError(
                f"can't write {self._directory}: {error.strerror or error}; the bundle that is served stays, "
                "free some space"
            ) from None
