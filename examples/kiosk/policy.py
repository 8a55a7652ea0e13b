"""The policy that the kiosk ships with: a quick private simulation, made into a signed bundle.

In real life this happens where the federation's server is, and the app comes with the bundle and the public key only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrec.client.bundle import load_bundle, make_bundle
from fedrec.client.bundle_file import sign
from fedrec.client.bundle_keys import load_private_key, load_public_key, make_keys
from fedrec.client.package import PolicyPackage
from fedrec.privacy.statement import PrivacyStatement
from films import name_and_year, titles

if TYPE_CHECKING:
    from fedrec import Config
    from fedrec.meta.interactions import Catalogue
    from fedrec.server.plan import RoundReport
    from fedrec.simulation.data.dataset import Dataset
    from fedrec.simulation.world import World

BUNDLE, PUBLIC_KEY = "policy.bundle", "policy.pub"
DATA = ("synthetic", "ml-100k")
LIKED = 4.0
"""Ratings from here on are what a tap stands for."""
SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"devices": 1000, "items": 240, "interactions": 15, "positive_threshold": LIKED, "holdout": 0.0},
    "policy": {
        "state": "none",
        "ids": False,
        "content_embedding": False,
        "affinity": True,
        "affinity_start": {
            "genre": (1.0, 0.75, 0.6, 0.25),
            "year": (0.55, 0.4, 0.3, 0.15),
            "genre x year": (0.0, 0.0, 0.0, 0.0),
        },
        "gain_start": 1.6,
        "frozen": ("bias", "gain"),
    },
    "local": {"steps": 2, "lr": 0.1},
    "privacy": {
        "unit": "interaction",
        "epsilon": 8.0,
        "max_participations": 4,
        "warm_share": 0.8,
        "example_clip": 0.3,
        "expected_batch": 100.0,
    },
    "server": {"rounds": 4, "outer_optimizer": "sgd", "decay": "none"},
    "evaluation": {
        "every": 2,
        "resamples": 100,
        "baselines": False,
        "cold_start": (0, 5),
        "serve_lr": 0.15,
        "serve_steps": 5,
    },
}
"""Popularity from one noised vote of every device, taste over genres and years by DP-SGD on the device; after the
configuration that ``benchmarks/configs/interaction-likes.toml`` measures."""

Say = Callable[[str], None]


class _Told:
    """Passes on what the simulation does, a line each time."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._rounds = 0

    def stage(self, text: str) -> None:
        self._say(text)

    def started(self, world: World, label: str, rounds: int) -> None:
        self._rounds = rounds

    def round(self, report: RoundReport) -> None:
        self._say(f"round {report.round} of {self._rounds}")


def shipped(home: Path, data: str, say: Say, **changes: Any) -> PolicyPackage:
    """The package in ``home``, verified; it is made first where there is none.

    Args:
        home: where the bundle and the public key lie.
        data: ``synthetic`` (films that do not exist) or ``ml-100k`` (fetched once; for research only).
        say: is told what happens, line by line.
        changes: other values of the data section, such as fewer ``devices``.
    """
    bundle = home / BUNDLE
    if not bundle.exists():
        _make(bundle, data, say, changes)
    return load_bundle(bundle, [load_public_key(home / PUBLIC_KEY)]).package


def _make(bundle: Path, data: str, say: Say, changes: dict[str, Any]) -> None:
    import fedrec
    from fedrec.simulation.packages import package_of

    settings = {**SETTINGS, "data": {**SETTINGS["data"], **changes, "name": data}}
    config = fedrec.Config.from_mapping(settings)
    dataset = _named(config) if data == "synthetic" else None
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        run = fedrec.simulate(config, out=Path(folder) / "run", dataset=dataset, listener=_Told(say))
        content = make_bundle(package_of(run, dataset=dataset), _statements(run.summary["privacy"]))
        secret, public = make_keys(Path(folder) / "key")
        signed = Path(folder) / BUNDLE
        signed.write_bytes(sign(content, load_private_key(secret)))
        os.replace(public, bundle.with_name(PUBLIC_KEY))
        os.replace(signed, bundle)  # last: where there is a bundle, its key is there, too; the private one is gone


def _statements(told: list[dict[str, Any]]) -> list[PrivacyStatement]:
    names = {field.name for field in fields(PrivacyStatement)}
    return [PrivacyStatement(**{name: value for name, value in one.items() if name in names}) for one in told]


def _named(config: Config) -> Dataset:
    """The synthetic world with titles in place of numbers."""
    from fedrec.simulation.data import load

    data = config.data
    dataset = load(
        "synthetic", devices=data.devices, items=data.items, interactions=data.interactions, seed=config.seed
    )
    catalogue = dataset.catalogue
    invented = titles(genres(catalogue), config.seed)
    numbered = catalogue.titles or catalogue.item_ids
    named = [f"{title} ({name_and_year(old)[1]})" for title, old in zip(invented, numbered, strict=True)]
    return replace(dataset, catalogue=replace(catalogue, titles=named))


def genres(catalogue: Catalogue) -> list[list[str]]:
    """The genres of every item, by the names of its feature columns."""
    columns = [group for group in catalogue.groups if group.name == "genre"]
    span = range(columns[0].start, columns[0].stop) if columns else range(0)
    names = {column: catalogue.feature_names[column].partition("=")[2] for column in span}
    return [[name for column, name in names.items() if row[column] > 0] for row in catalogue.features]
