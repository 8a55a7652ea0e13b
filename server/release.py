"""What a deployed federation ends with: an unsigned bundle of what it learned, for its maker to sign."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .. import _durable
from ..client.bundle import Bundle, make_bundle
from ..meta.policy import Named
from ..privacy.ledger import Ledger
from ..privacy.statement import PrivacyStatement
from .account import LEDGER

UPDATE = "update.bundle"
"""Name of the bundle in the run directory. The key that signs it belongs on another machine."""


def write_release(run_dir: Path, base: Bundle, planned: Iterable[PrivacyStatement], phi: Named) -> Path:
    """Write the bundle that follows ``base``: the same policy at ``phi``, one version on.

    Its privacy statements are those of ``base`` and, after them, what this federation has cost.

    Raises:
        RunError: the disk is full or not writable.
    """
    package = replace(base.package, phi=dict(phi), version=base.version + 1)
    content = make_bundle(package, (*base.privacy, *(spent(run_dir, one) for one in planned)), parent=base)
    path = run_dir / UPDATE
    with _durable.storage_errors(path, "all rounds are safe"):
        _durable.replace_file(path, content)
    return path


def spent(run_dir: Path, planned: PrivacyStatement) -> PrivacyStatement:
    """What a federation has spent, as a statement.

    Under unit ``user`` that is what its ledger says: rounds that were held twice count twice, those that were not held
    not at all. Under unit ``interaction`` it is what the ledger of each device allows.
    """
    if planned.unit != "user":
        return planned
    with Ledger.open(run_dir / LEDGER) as ledger:
        dearest = max(ledger.standings(), key=lambda standing: standing.epsilon)
    rounds = sum(charge.steps for charge in dearest.charges)
    return replace(planned, epsilon=dearest.epsilon, rounds=rounds)
