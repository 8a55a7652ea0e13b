"""One device's policy at work: its log as a state, slates with propensities, reasons, and adaptation for serving."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .._validate import at_least, quoted
from ..config import LocalConfig, Unit
from ..errors import PolicyError
from ..meta.acting import Exploration, act, conditional
from ..meta.adapt import descend
from ..meta.eligibility import allowed_items
from ..meta.examples import Examples, build_examples, reward_levels
from ..meta.explain import explain as take_apart
from ..meta.interactions import Interactions
from ..meta.policy import Named, State
from . import arguments
from .slate import Reasons, Slot

if TYPE_CHECKING:
    from .package import PolicyPackage
    from .store import Entry

logger = logging.getLogger(__name__)

REASONS = 3
"""Logged items and features that are named in an explanation."""


@dataclass(frozen=True, eq=False)
class Log:
    """What a training of one device begins with; it does not change while others record.

    Attributes:
        package: policy and rules.
        start: the initialization and the personal parameters.
        interactions: the log that is trained on.
        user: the device's features, float32 ``[user_features]``.
        last: id of the last interaction in the store.
    """

    package: PolicyPackage
    start: Named
    interactions: Interactions
    user: Tensor
    last: int

    def examples(self, settings: LocalConfig, unit: Unit, stream: tuple[int | str, ...]) -> Examples:
        """Training examples under a privacy unit."""
        return build_examples(
            self.package.policy,
            self.interactions,
            self.user,
            settings=settings,
            unit=unit,
            reward_range=self.package.reward_range,
            stream=stream,
        )

    def served(self, before_step: Callable[[], None]) -> bytes:
        """The fast weights after noise-free steps, as safetensors. They serve this device and must never leave it.

        Raises:
            PolicyError: they are not finite.
        """
        config = self.package.config
        settings = config.local.model_copy(update={"lr": config.evaluation.serve_lr, "episodes": False})
        found = descend(
            self.package.policy,
            self.start,
            self.examples(settings, "none", (config.seed, "serve", 0)),
            settings,
            steps=config.evaluation.serve_steps,
            before_step=before_step,
        )
        for name, value in found.items():
            if not bool(torch.isfinite(value).all()):
                raise PolicyError(f"expected finite parameters, got NaN or infinity in {name}; lower the step sizes")
        return packed(found)


class Seat:
    """A package together with the log of one device and what was adapted for it. Belongs to one thread at a time."""

    def __init__(self, package: PolicyPackage, entries: Iterable[Entry], profile: Mapping[str, float]) -> None:
        """Sit down with a log and the device's features; :meth:`serve` takes what was adapted."""
        self.package = package
        self._rows = {str(item): row for row, item in enumerate(package.catalogue.item_ids)}
        self._seen = torch.zeros(package.policy.items, dtype=torch.bool)
        self._log: list[tuple[int, float, float]] = []
        self.last = 0
        self._user = self.user(profile)
        self.personal = {name: torch.zeros(package.policy.specs[name].shape) for name in self._names("personal")}
        self._served: Named = {}
        self.extend(entries)

    def _names(self, scope: str) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.package.policy.specs.values() if spec.scope == scope)

    def extend(self, entries: Iterable[Entry]) -> None:
        """Add what was logged since. Items that left the catalogue stay in the store and are passed over here."""
        threshold = self.package.config.data.positive_threshold
        for entry in entries:
            self.last = max(self.last, entry.id)
            row = self._rows.get(entry.item)
            if row is None:
                continue
            self._seen[row] = True
            if threshold is None or entry.reward >= threshold:
                self._log.append((row, entry.reward, entry.first_draw or 0.0))

    def serve(self, served: bytes | None, personal: bytes | None) -> None:
        """Take adapted parameters; those of another policy, and damaged ones, are passed over."""
        self.personal = {**self.personal, **self._fitting(personal)}
        self._served = self._fitting(served)

    @property
    def _parameters(self) -> Named:
        """What serves now."""
        return {**self.package.phi, **self.personal, **self._served}

    def _fitting(self, tensors: bytes | None) -> Named:
        specs = self.package.policy.specs
        return {
            name: value
            for name, value in unpacked(tensors).items()
            if name in specs and value.shape == specs[name].shape and bool(torch.isfinite(value).all())
        }

    def user(self, features: Mapping[str, float]) -> Tensor:
        """The device's features, float32 ``[user_features]``; 0 where not given.

        Raises:
            ArgumentError: a name that the policy does not know, or no finite number.
        """
        names = self.package.user_features
        known = arguments.features(features, names)
        return torch.tensor([known.get(name, 0.0) for name in names], dtype=torch.float32)

    def log(self) -> Log:
        """The log as it is now, for a training that may take its time."""
        rows, rewards, chances = zip(*self._log, strict=True) if self._log else ((), (), ())
        interactions = Interactions(
            items=torch.tensor(rows, dtype=torch.int64),
            rewards=torch.tensor(rewards, dtype=torch.float32),
            propensities=torch.tensor(chances, dtype=torch.float32),
        )
        return Log(self.package, {**self.package.phi, **self.personal}, interactions, self._user, self.last)

    def state(self, context: Mapping[str, float] | None) -> State:
        """What the policy looks at: the end of the log, right-aligned, ``[1, length]``."""
        policy = self.package.policy
        length = policy.settings.history_length if policy.sees_history else 0
        recent = self._log[max(0, len(self._log) - length) :] if length else []
        history = torch.full((1, length), -1)
        levels = torch.zeros((1, length), dtype=torch.int64)
        if recent:
            rows, rewards, _ = zip(*recent, strict=True)
            history[0, -len(recent) :] = torch.tensor(rows)
            levels[0, -len(recent) :] = reward_levels(torch.tensor(rewards), self.package.reward_range)
        return State(history, levels, self._user if context is None else self.user(context))

    def slots(
        self,
        candidates: Collection[str] | None,
        how: Exploration,
        context: Mapping[str, float] | None,
        *,
        blocked: Collection[str],
        again: bool,
        generator: torch.Generator,
    ) -> tuple[Slot, ...]:
        """Draw a slate: see ``Device.recommend``."""
        policy, catalogue = self.package.policy, self.package.catalogue
        allowed = self._allowed(candidates, blocked, again)
        how = replace(how, size=min(how.size, policy.items))  # nothing is computed for places that stay empty
        with torch.no_grad():
            scores = policy.scores(self._parameters, self.state(context))
            drawn = act(scores, allowed, how, generator, policy.features)
            nothing = torch.full((1, 0), -1)
            first = conditional(scores.to(torch.float64), allowed, how, nothing, policy.features)[0]
        pairs = zip(drawn.items[0].tolist(), drawn.propensities[0].tolist(), strict=True)
        return tuple(
            Slot(
                item=str(catalogue.item_ids[row]),
                title=catalogue.title(row),
                position=position,
                propensity=chance,
                first_draw=float(first[row]),
            )
            for position, (row, chance) in enumerate(pairs)
            if row >= 0
        )

    def _allowed(self, candidates: Collection[str] | None, blocked: Collection[str], again: bool) -> Tensor:
        """Who may be drawn, bool ``[1, items]``."""
        count = self.package.policy.items
        ineligible = torch.zeros(count, dtype=torch.bool)
        if candidates is not None:
            ineligible[:] = True
            ineligible[self.rows(candidates)] = False
        ineligible[self.rows(blocked)] = True
        seen = torch.nonzero(self._seen).T if not again else torch.full((1, 0), -1)
        return allowed_items(count, seen, ineligible)

    def rows(self, items: Collection[str]) -> Tensor:
        """Catalogue rows of some ids, int64.

        Raises:
            PolicyError: an id that is not in the catalogue.
        """
        try:
            return torch.tensor([self._rows[item] for item in items], dtype=torch.int64)
        except KeyError as error:
            unknown = quoted(error.args[0])
            raise PolicyError(
                f"expected items of the catalogue, got {unknown}; check its id, or leave it out"
            ) from None

    def reasons(self, item: str, context: Mapping[str, float] | None) -> Reasons:
        """Why ``item`` gets its score now."""
        (row,) = self.rows([item]).tolist()
        catalogue = self.package.catalogue
        candidates = ~self._seen
        candidates[row] = True
        found = take_apart(
            self.package.policy,
            self._parameters,
            self.state(context),
            row,
            groups=catalogue.groups,
            candidates=candidates,
        )
        because = [(catalogue.title(other), effect) for _, other, effect in found.history if effect > 0]
        return Reasons(
            item=item,
            title=catalogue.title(row),
            score=found.score,
            probability=found.probability,
            terms=found.terms,
            because=tuple(because[:REASONS]),
            features=tuple((catalogue.feature_names[column], effect) for column, effect in found.features[:REASONS]),
        )


def exploration(k: int, temperature: float, epsilon: float, diversity: float) -> Exploration:
    """How a slate is drawn, checked."""
    at_least("k", k, 1)
    return Exploration(size=k, temperature=temperature, epsilon=epsilon, diversity=diversity)


def packed(named: Named) -> bytes:
    """Named tensors as safetensors."""
    tensors: bytes = save({name: value.detach().contiguous() for name, value in named.items()})
    return tensors


def unpacked(tensors: bytes | None) -> Named:
    """What :func:`packed` wrote; nothing where that was damaged: it is adapted again."""
    try:
        return {} if tensors is None else load(tensors)
    except SafetensorError as error:
        logger.warning("adapted parameters are damaged and passed over (%s); adapt again", error)
        return {}


def readable(tensors: bytes | None) -> dict[str, list[float]]:
    """Adapted parameters as lists of numbers."""
    return {name: value.flatten().tolist() for name, value in unpacked(tensors).items()}
