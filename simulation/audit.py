"""The audit of a configuration or a run: every mechanism it uses is attacked, and measured epsilon meets the claim.

A lower bound above the claim refutes it: the implementation spends more than it says. One below proves nothing beyond
what the attack could have shown. With A attacks each bound holds with confidence ``1 - (1 - confidence) / A``
(Bonferroni), so that an honest mechanism is refuted with probability ``1 - confidence`` at most.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from .._durable import replace_file, storage_errors
from .._validate import probability
from ..config import Config
from ..errors import ConfigError
from .audit_attacks import Attack, Finding, attacks_on
from .audit_membership import Membership, membership
from .run import Run

AUDIT = "audit.json"
SizeName = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much an audit computes.

    Attributes:
        rounds: rounds of a federation of two devices, each way.
        plans: whole federations of two devices, each way; 0 leaves this attack out.
        devices: devices that release once, or all their lives, each way.
        canaries: in one federation.
    """

    rounds: int
    plans: int
    devices: int
    canaries: int


SIZES: Mapping[str, Size] = {
    "quick": Size(rounds=1_500, plans=0, devices=4_000, canaries=500),
    "standard": Size(rounds=8_000, plans=300, devices=20_000, canaries=2_000),
    "thorough": Size(rounds=40_000, plans=2_000, devices=100_000, canaries=5_000),
}


class Listener(Protocol):
    """Follows an audit."""

    def begin(self, title: str, steps: int) -> None:
        """An attack of so many steps begins."""

    def advance(self, steps: int) -> None:
        """So many more steps are done."""


class Silent:
    """Says nothing."""

    def begin(self, title: str, steps: int) -> None:
        """An attack begins."""

    def advance(self, steps: int) -> None:
        """Some steps are done."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        findings: one of every attack on a claim.
        membership: attacks on what is recommended, which no claim covers; empty without a run.
        statements: the sentences that were put to the test.
        confidence: that no honest mechanism is refuted, over all findings together.
        size: ``quick``, ``standard`` or ``thorough``.
        seconds: it took.
    """

    findings: tuple[Finding, ...]
    membership: tuple[Membership, ...]
    statements: tuple[str, ...]
    confidence: float
    size: str
    seconds: float

    @property
    def refuted(self) -> bool:
        """Whether any attack measured more than is claimed."""
        return any(finding.refuted for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what ``audit.json`` holds."""
        return {
            "verdict": "refuted" if self.refuted else "not refuted" if self.findings else "nothing is claimed",
            "confidence": self.confidence,
            "size": self.size,
            "seconds": round(self.seconds, 1),
            "statements": list(self.statements),
            "findings": [finding.to_dict() for finding in self.findings],
            "membership": [one.to_dict() for one in self.membership],
        }


def audit(
    config: Config,
    *,
    stated: Mapping[str, Mapping[str, Any]] | None = None,
    size: SizeName | Size = "standard",
    confidence: float = 0.99,
    listener: Listener | None = None,
) -> AuditReport:
    """Attack the mechanisms of a configuration.

    Args:
        config: whose privacy plan is put to the test, with its seed.
        stated: privacy statements by unit to hold against; without them, those of the configuration's plan.
        size: how much to compute.
        confidence: that no honest mechanism is refuted, in (0, 1).
        listener: follows the audit.

    Raises:
        ConfigError: unit ``none`` claims nothing, or no attack knows the mechanism.
    """
    _check_known(config)
    started, listener = time.perf_counter(), listener or Silent()
    probability("confidence", confidence, open_right=True)
    chosen = SIZES[size] if isinstance(size, str) else size
    attacks, statements = attacks_on(config, chosen.rounds, chosen.plans, chosen.devices, chosen.canaries, stated)
    each = 1 - (1 - confidence) / len(attacks)
    findings = tuple(_found(attack, each, listener) for attack in attacks)
    return AuditReport(
        findings=findings,
        membership=(),
        statements=statements,
        confidence=confidence,
        size=size if isinstance(size, str) else json.dumps(asdict(size)),
        seconds=time.perf_counter() - started,
    )


def _check_known(config: Config) -> None:
    """Refuse what the attacks would judge wrongly: a verdict on another mechanism is worth nothing."""
    if config.privacy.unit == "none":
        raise ConfigError(
            "expected a configuration that claims privacy, got privacy.unit = none; set it to user, interaction or both"
        )
    if config.privacy.clipping != "fixed" or config.server.min_separation > 1:
        raise ConfigError(
            "expected a fixed clip and no minimum separation, which is what the attacks know, got privacy.clipping = "
            f"{config.privacy.clipping} and server.min_separation = {config.server.min_separation}; audit the "
            "configuration with privacy.clipping=fixed and server.min_separation=1"
        )


def audit_run(
    directory: str | Path,
    *,
    size: SizeName | Size = "standard",
    confidence: float = 0.99,
    listener: Listener | None = None,
) -> AuditReport:
    """Attack the mechanisms of a finished run, and what its policies recommend; writes ``audit.json`` into it.

    Raises:
        RunError: the directory holds no finished run.
    """
    started, listener = time.perf_counter(), listener or Silent()
    run = Run.open(directory)
    stated = {statement["unit"]: cast(Mapping[str, Any], statement) for statement in run.summary["privacy"]}
    mechanisms = (
        None
        if run.config.privacy.unit == "none"
        else audit(run.config, stated=stated, size=size, confidence=confidence, listener=listener)
    )
    listener.begin("membership inference on recommendations", 1)
    attacked = tuple(membership(run.served(), run.config.seed))
    listener.advance(1)
    report = AuditReport(
        findings=() if mechanisms is None else mechanisms.findings,
        membership=attacked,
        statements=() if mechanisms is None else mechanisms.statements,
        confidence=confidence,
        size=size if isinstance(size, str) else json.dumps(asdict(size)),
        seconds=time.perf_counter() - started,
    )
    write(report, run.directory / AUDIT)
    return report


def write(report: AuditReport, path: Path) -> None:
    """Write ``audit.json``.

    Raises:
        RunError: the disk is full or not writable.
    """
    with storage_errors(path, "the audit itself is done"):
        replace_file(path, (json.dumps(report.to_dict(), indent=1, allow_nan=True) + "\n").encode())


def _found(attack: Attack, confidence: float, listener: Listener) -> Finding:
    listener.begin(attack.title, attack.steps)
    return attack.run(confidence, listener.advance)
