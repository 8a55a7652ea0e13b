"""The worst that one log entry can do: tiny policies and neighbouring logs for the audit of unit ``interaction``.

Which policy decides how examples are built, so each kind of state has worlds of its own. Gradients are far beyond the
clip, and the canary's goes in a direction of its own, in which an observer looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import Config, LocalConfig, PolicyConfig
from ..meta.examples import block_numbers
from ..meta.interactions import Catalogue
from ..meta.policy import Named, Policy
from ..privacy.audit import Scores
from ..privacy.mechanisms import Sensitivity
from .data.dataset import Dataset

ITEMS = 48
"""Catalogue of the audit's devices: most of it is silent, and shows the size of the noise."""
_FAR = 8.0
"""How far beyond the clip the gradients are."""
_QUIET = -40.0
"""Log-odds of items that are never recommended, so that no gradient touches them."""
_MOVE = 1e-4
"""How far a step moves log-odds: so little that all steps see the same gradients, the worst case of composition."""


@dataclass(frozen=True, kw_only=True)
class DeviceWorld:
    """Two neighbouring logs, and what an observer looks at.

    Attributes:
        title: in words.
        policy: tiny, of the kind that decides how examples are built.
        phi: the initialization that the device gets.
        one: items of the log without the canary.
        other: items of the log with it.
        look: statistics of the releases of many devices, float64 ``[devices, statistics]``. The first is the canary's
            direction: its two means lie one apart at most.
    """

    title: str
    policy: Policy
    phi: Named
    one: tuple[int, ...]
    other: tuple[int, ...]
    look: Callable[[Named], Scores]


def device_worlds(config: Config) -> list[DeviceWorld]:
    """The worlds that suit a configuration; the first is the one whose canary shows most."""
    if config.policy.state in ("history", "gru", "transformer") or config.policy.affinity:
        return [_changed_block(config), _seen_by_many(config)]
    worlds = [_own_example(config)]
    return [*worlds, _personal(config)] if config.policy.state == "personal" else worlds


def device_config(config: Config, policy: Policy) -> Config:
    """The configuration with step sizes that leave the gradients where they are; they are no part of the claim."""
    local, privacy = config.local, config.privacy
    unit = _MOVE * privacy.expected_batch / (privacy.example_clip * _largest_noise(config) * policy.settings.bias_scale)
    still = LocalConfig(
        steps=local.steps, windows=local.windows, horizon=local.horizon, lr=unit, slow_lr=unit * local.steps
    )
    return config.model_copy(
        update={
            "local": still,
            "privacy": privacy.model_copy(update={"unit": "interaction", "scales": scales_in(config)}),
        }
    )


def logs_of(logs: list[tuple[int, ...]], items: int) -> Dataset:
    """A data set of devices with these logs, without features."""
    flat = [item for log in logs for item in log]
    return Dataset(
        name="audit",
        items=np.array(flat, dtype=np.int32),
        rewards=np.ones(len(flat), dtype=np.float32),
        offsets=np.concatenate([[0], np.cumsum([len(log) for log in logs])]).astype(np.int64),
        catalogue=bare_catalogue(items),
        device_features=np.zeros((len(logs), 0), dtype=np.float32),
        device_feature_names=(),
        device_ids=tuple(str(number) for number in range(len(logs))),
        reward_range=(0.0, 1.0),
    )


def bare_catalogue(items: int) -> Catalogue:
    """Items that nothing is known about."""
    features = np.zeros((items, 0), dtype=np.float32)
    return Catalogue(features=features, feature_names=(), item_ids=tuple(str(number) for number in range(items)))


def scales_in(config: Config) -> dict[str, float]:
    """Public scales of what the worlds train."""
    return config.privacy.scales_of(("bias", "ids", "latent"))


def _largest_noise(config: Config) -> float:
    return max(1.0, config.privacy.noise_multiplier or 1.0)


def _own_example(config: Config) -> DeviceWorld:
    """Every entry is an example: N = 3 entries of one item, against N = 4 with one of another."""
    policy = _bias_policy(config, "none", 1.0)
    direction = torch.full((ITEMS,), -1.0 / ITEMS)
    direction[ITEMS - 1] += 1.0

    def look(each: Named) -> Scores:
        bias = _in_clips(each["bias"], config, policy, "bias")
        quiet = bias[:, 1 : ITEMS - 1]
        return statistics_of(bias @ (direction / direction.norm()).double(), quiet - quiet.mean(1, keepdim=True))

    return DeviceWorld(
        title="N = 3 against N = 4",
        policy=policy,
        phi={"bias": torch.zeros(ITEMS), "gain": torch.tensor([1.0, 0.0])},
        one=(0, 0, 0),
        other=(0, 0, 0, ITEMS - 1),
        look=look,
    )


def _changed_block(config: Config) -> DeviceWorld:
    """A canary turns a block's gradient round: from the clip in one direction to the clip in the opposite one."""
    horizon = config.local.horizon
    policy = _bias_policy(config, "history", 2.0 * horizon)
    block = block_numbers(np.arange(ITEMS), config.local.windows)
    target = int(np.flatnonzero(np.bincount(block)[block] > 1)[0])
    canary = int(next(item for item in np.flatnonzero(block == block[target]) if item != target))
    elsewhere = [int(item) for item in np.flatnonzero(block != block[target])][:2] or [canary]
    bias = torch.full((ITEMS,), _QUIET)
    bias[target], bias[canary] = math.log(1 - 0.5 / horizon), math.log(0.5 / horizon)
    quiet = [item for item in range(ITEMS) if item not in (target, canary, *elsewhere)]
    phi = _embedding_phi(policy) | {"bias": bias / policy.settings.bias_scale}

    def look(each: Named) -> Scores:
        moved = _in_clips(each["bias"], config, policy, "bias")
        return statistics_of((moved[:, canary] - moved[:, target]) / math.sqrt(2) / 2, moved[:, quiet])

    rest = tuple(elsewhere) if config.local.windows > 1 else ()
    log = (*rest, *(target,) * horizon)
    title = f"N = {len(log)} against N = {len(log) + 1}, in one block"
    return DeviceWorld(title=title, policy=policy, phi=phi, one=log, other=(*log, canary), look=look)


def _seen_by_many(config: Config) -> DeviceWorld:
    """A canary that would stand in the history of every example, if windows overlapped, and be all that they see."""
    policy = _bias_policy(config, "history", 1.0, trained=("bias", "ids"))
    block = block_numbers(np.arange(ITEMS), config.local.windows)
    target = 0
    canary = int(([*np.flatnonzero(block != block[target]), 1])[0])
    bias = torch.full((ITEMS,), _QUIET)
    bias[[target, ITEMS - 1]] = 0.0
    phi = _embedding_phi(policy) | {"bias": bias / policy.settings.bias_scale}
    phi["ids"][canary, 0] = 1e4
    quiet = [item for item in range(2, ITEMS - 1) if item != canary]

    def look(each: Named) -> Scores:
        seen = _in_clips(each["ids"][:, :, 0], config, policy, "ids")
        moved = _in_clips(each["bias"], config, policy, "bias")
        return np.concatenate(
            [
                statistics_of((seen[:, target] - seen[:, ITEMS - 1]) / math.sqrt(2) / 2, seen[:, quiet]),
                statistics_of((moved[:, target] - moved[:, ITEMS - 1]) / math.sqrt(2) / 2, moved[:, quiet]),
            ],
            axis=1,
        )

    rest = (target,) * config.local.windows
    return DeviceWorld(
        title="an entry before all others", policy=policy, phi=phi, one=rest, other=(canary, *rest), look=look
    )


def _personal(config: Config) -> DeviceWorld:
    """A log that pulls the personal vector nowhere, and one more entry that does: if it moved freely, it would show."""
    settings = PolicyConfig(state="personal", content=False, content_embedding=False, bias=False, dim=ITEMS, fast=())
    policy = Policy.for_catalogue(settings, bare_catalogue(4))
    ids, far = torch.zeros(4, ITEMS), 2 * _FAR * config.privacy.example_clip
    ids[[0, 2], [0, 1]], ids[[1, 3], [0, 1]] = far, -far

    def look(each: Named) -> Scores:
        rows = _in_clips(each["ids"].flatten(1), config, policy, "ids").reshape(-1, 4, ITEMS)
        latent = _in_clips(each["latent"], config, policy, "latent")
        both = [statistics_of(rows[:, 2, 1], rows[:, :, 2:].flatten(1)), statistics_of(latent[:, 1], latent[:, 2:])]
        return np.concatenate(both, axis=1)

    log = (0, 1) * 15
    return DeviceWorld(
        title="N = 30 against N = 31, personal vector",
        policy=policy,
        phi={"ids": ids, "latent": torch.zeros(ITEMS)},
        one=log,
        other=(*log, 2),
        look=look,
    )


def _bias_policy(config: Config, state: str, factor: float, trained: tuple[str, ...] = ("bias",)) -> Policy:
    """A policy whose trained parameters are few and whose gradients are far beyond the clip."""
    shared = {"state": state, "content": False, "ids": state != "none", "content_embedding": False}
    rest = {"dim": 2, "history_rewards": False, "history_length": max(2, config.local.windows + 1), "fast": ()}
    scale = Sensitivity(1.0, scales_in(config)).scale("bias")
    settings = PolicyConfig.model_validate(
        {**shared, **rest, "bias_scale": factor * _FAR * config.privacy.example_clip * scale}
    )
    every = Policy.for_catalogue(settings, bare_catalogue(ITEMS)).names(scope="shared")
    frozen = tuple(name for name in every if name not in trained)
    return Policy.for_catalogue(settings.model_copy(update={"frozen": frozen}), bare_catalogue(ITEMS))


def _embedding_phi(policy: Policy) -> Named:
    """Embeddings of zero: the history counts for nothing unless an item's is set."""
    phi = policy.initial(torch.Generator().manual_seed(0))
    return phi | {"ids": torch.zeros_like(phi["ids"])}


def _in_clips(update: Tensor, config: Config, policy: Policy, name: str) -> Tensor:
    """An update in units of what K clipped gradients of one direction come to, float64."""
    still = device_config(config, policy)
    scale = Sensitivity(1.0, scales_in(config)).scale(name)
    return update.double() * config.privacy.expected_batch / (config.privacy.example_clip * scale * still.local.slow_lr)


def statistics_of(direction: Tensor, quiet: Tensor) -> Scores:
    """The canary's direction, and the log of the noise's size where nothing but noise is."""
    spread = quiet.square().mean(1).add(1e-30).log()
    found: Scores = torch.stack([direction.double(), spread.double()], dim=1).numpy()
    return found
