"""What a federation is given from outside: the initialization, the public constants, the hooks. And what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from .._validate import positive
from ..config import Config, Phase
from ..errors import ConfigError, RunError
from ..meta import pairs
from ..meta.policy import Named
from ..meta.popularity import NAME as WARM_STARTED
from ..meta.popularity import VOTE_NORM
from ..privacy.adaptive import split_noise
from ..privacy.mechanisms import Sensitivity
from ..privacy.separation import turn_of
from .roster import Roster

STACK_BYTES = 2**30
"""Most that the stacked updates of a round may take; a process that makes, sends and reads them holds some copies."""
StopReason = Literal["rounds", "patience", "budget"]


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """One round, as it stands in ``metrics.jsonl``.

    Participants, refusals and validation are not private: they describe a simulation, or what the server of a
    deployment sees.
    """

    round: int
    participants: int
    """Devices whose updates are in the sum."""
    epsilon: Mapping[str, float]
    """Spent so far, by privacy unit."""
    validation: Mapping[str, float] | None
    seconds: float
    """Wall-clock time; the only field that two equal runs do not share."""
    quarantined: Mapping[str, int]
    """Replies set aside, by reason."""
    refused: int
    """Devices that had no budget or no consent."""
    rounds: int
    """Rounds of the whole run; not part of the row."""
    clip: float | None = None
    """S of this round, where the clip is adaptive: post-processing of what earlier rounds released."""
    bytes_down: int = 0
    """Bytes of tensors to the devices ordered, each by itself, as in a deployment."""
    bytes_up: int = 0
    """Bytes of tensors from the devices whose updates count, each by itself."""
    flagged: int | None = None
    """Devices whose anomaly score was above the threshold, where they are scored."""

    def row(self) -> dict[str, Any]:
        """The row of ``metrics.jsonl``."""
        row: dict[str, Any] = {
            "round": self.round,
            "participants": self.participants,
            "epsilon": dict(self.epsilon),
            "validation": None if self.validation is None else dict(self.validation),
            "seconds": round(self.seconds, 3),
            "quarantined": dict(self.quarantined),
            "refused": self.refused,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
        }
        extra = {"clip": self.clip, "flagged": self.flagged}
        return row | {key: value for key, value in extra.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class FederationPlan:
    """Everything about a run that is not in its configuration."""

    phi0: Named
    """The initialization of round 1, float32 on CPU; the names of the shared parameters."""
    schema: str
    """Fingerprint of the policy."""
    trained: tuple[str, ...] = ()
    """Names of ``phi0`` that updates are about; empty means all. The others stay as they are."""
    population: int
    """Number of training devices, a public constant >= 2."""
    run_dir: Path
    """Where checkpoints, metrics, ledger and lock live; created if missing."""
    run: str = ""
    """Public name of the run, sent with every order; empty takes it from the configuration's fingerprint."""
    noise_multiplier: float | None = None
    """z of the central noise; needed with units user and both, none otherwise."""
    warm_noise_multiplier: float | None = None
    """z of the warm start's central noise; needed with those units and a warm start."""
    pairs_noise_multiplier: float | None = None
    """z of the central noise on the pairs; needed with those units where pairs are released."""
    warm_floor: float = 1.0
    """Public floor of the warm start's counts: see ``meta.popularity``."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Public scale by parameter, the same that devices clip with."""
    simulation: bool = True
    """Noise and draws come from seeded streams, so that the run can be repeated; False takes OS entropy."""
    single: bool = False
    """One device a node, as in a deployment."""
    validate: Callable[[int, Named], Mapping[str, float]] | None = None
    """Judge what round n serves. Not private; must be a function of its arguments only."""
    epsilon: Callable[[int], Mapping[str, float]] | None = None
    """Further epsilons spent after round n (``{"interaction": ...}``), added to the federation's own."""
    on_round: Callable[[RoundReport], None] | None = None
    """Called after every round, when its checkpoint is on disk."""
    nodes: int | None = None
    """Flower nodes that take part, no fewer and no more; none: as many as come, at least one."""
    least_nodes: int = 1
    """Flower nodes to wait for before the first round, where ``nodes`` says nothing."""
    deadline: float | None = None
    """Seconds after which a round goes on without the missing replies, in place of ``server.deadline``; may change when
    a run is resumed."""
    node_wait: float = 60.0
    """Seconds to wait for the nodes before the first round."""
    resume: bool = False
    """Go on from the last checkpoint; without one, start."""
    locked: bool = False
    """The caller holds the :class:`RunLock` of ``run_dir`` already."""

    @property
    def lasting(self) -> bool:
        """Whether a node keeps its place in the roster for good (``server.places``): in a deployment."""
        return self.single and not self.simulation

    def sensitivity(self, config: Config, round_number: int, clip: float | None = None) -> Sensitivity | None:
        """What one device can move a round's sum by (units user and both), else none; ``clip``: S where it adapts."""
        if config.privacy.unit not in ("user", "both"):
            return None
        phase = config.phase(round_number)
        if phase != "adapt":
            return Sensitivity(VOTE_NORM if phase == "popularity" else pairs.VOTE_NORM, {}, "user")
        return Sensitivity(clip or config.privacy.clip, self.scales, "user")

    def turn(self, config: Config, round_number: int) -> int | None:
        """Whose turn a round is; none where every device may take part: no minimum separation, or the warm start."""
        if config.server.min_separation == 1 or config.phase(round_number) != "adapt":
            return None
        before = config.server.rounds - config.adapt_rounds
        return turn_of(round_number - before, config.server.min_separation)

    def noise(self, config: Config, round_number: int) -> float:
        """The multiplier of a round's central noise; 0 where there is none."""
        found: dict[Phase, float | None] = {
            "popularity": self.warm_noise_multiplier,
            "pairs": self.pairs_noise_multiplier,
            "adapt": self.noise_multiplier,
        }
        return found[config.phase(round_number)] or 0.0

    def asked(self, config: Config, round_number: int, phi: Named) -> Named:
        """What a round's updates look like: the parameters that they are about, at ``phi``, or an empty vote."""
        phase = config.phase(round_number)
        if phase == "pairs":
            return {pairs.NAME: torch.zeros(pairs.cells(min(config.server.warm_pairs, len(phi[WARM_STARTED]))))}
        names = (WARM_STARTED,) if phase == "popularity" else sorted(self.trained or self.phi0)
        return {name: phi[name] for name in names}

    def run_name(self, config: Config) -> str:
        """Public name of the run."""
        return self.run or config.fingerprint()[:16]

    def check(self, config: Config) -> None:
        """Refuse what can't run.

        Raises:
            RunError: fewer than 2 devices, or an initialization that is empty, not float32 or not finite.
            ConfigError: noise and unit contradict each other, or validation is asked for by name and there is none.
            PrivacyError: the noise on the bits of adaptive clipping is too small for the whole release's.
            ValueError: a scale is not positive or names no parameter.
        """
        Roster(self.population, self.single)
        for name, tensor in self.phi0.items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise RunError(f"expected a finite float32 initialization, got {tensor.dtype} or NaN in {name!r}")
        if not self.phi0:
            raise RunError("expected an initialization with at least one tensor, got none")
        central = config.privacy.unit in ("user", "both")
        if central != (self.noise_multiplier is not None):
            raise ConfigError(
                f"expected a noise multiplier with units user and both and with no other, got "
                f"{self.noise_multiplier!r} with unit {config.privacy.unit}"
            )
        if central:
            positive("noise_multiplier", self.noise_multiplier or 0.0)
            Sensitivity(config.privacy.clip, self.scales, "user").check_names(dict.fromkeys(self.trained or self.phi0))
        bits = config.bit_noise(self.population)
        if central and bits is not None:
            split_noise(self.noise_multiplier or 0.0, bits)
        if config.server.min_separation > self.population:
            raise ConfigError(
                f"expected server.min_separation of at most the {self.population} devices there are, got "
                f"{config.server.min_separation}; lower it"
            )
        if central and config.phase(1) == "popularity":
            positive("warm_noise_multiplier", self.warm_noise_multiplier or 0.0)
        if central and config.server.warm_pairs:
            positive("pairs_noise_multiplier", self.pairs_noise_multiplier or 0.0)
        if config.phase(1) == "popularity" and WARM_STARTED not in self.phi0:
            raise ConfigError(f"expected {WARM_STARTED!r} among the shared parameters for a warm start, got none")
        self._check_room(config)
        if config.server.patience is not None and self.validate is None:
            raise ConfigError("expected a validation for server.patience, got none; set server.patience to none")

    def _check_room(self, config: Config) -> None:
        """Refuse stacks that would not fit in memory; the draw is random, so what is expected is what is held to it."""
        if not config.server.stacked:
            return
        numbers = sum(self.phi0[name].numel() for name in self.trained or self.phi0)
        devices = math.ceil(config.expected_cohort(self.population))
        size = 4 * numbers * devices
        if size > STACK_BYTES:
            raise ConfigError(
                f"expected the stacked updates of a round to take {STACK_BYTES / 2**30:g} GiB at most, got {devices} "
                f"devices of {numbers} numbers ({size / 2**30:.3g} GiB); lower server.participation, or the policy's "
                "size, or go without aggregator, robust_clip and anomaly"
            )


@dataclass(frozen=True, kw_only=True)
class FederationResult:
    """How a federation ended."""

    phi: Named
    """The last initialization."""
    served: Named
    """What the last round serves (the running average, where one is kept)."""
    best: Named
    """What the best validated round serves; the last one's where nothing was validated."""
    best_round: int
    best_metric: float | None
    """Validation metric of the best round."""
    rounds: int
    """Rounds done."""
    stop: StopReason
    """Why it ended."""
    epsilon: Mapping[str, float]
    """Spent, by privacy unit."""
    rows: tuple[dict[str, Any], ...]
    """All rows of ``metrics.jsonl``."""
