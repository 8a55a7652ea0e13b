"""A configuration as scenarios of the budget planner: what ``fedrec simulate`` would spend, before it does."""

from __future__ import annotations

from typing import Literal

from ..config import Config
from ..errors import ConfigError
from ..meta.examples import changes_per_entry
from ..privacy.scenario import Scenario
from .data.registry import list_datasets


def scenarios_of(config: Config, devices: int | None = None) -> tuple[Scenario, ...]:
    """One scenario for each privacy unit of ``config``; solved, each has the statement of ``budget.plan_budget``.

    Args:
        config: the run.
        devices: devices that train; none takes them from the data set, which must be here.

    Raises:
        ConfigError: the unit is none, or nobody knows how many devices there are.
    """
    unit = config.privacy.unit
    if unit == "none":
        raise ConfigError(
            "expected privacy.unit user, interaction or both, got none: it spends no budget; choose another"
        )
    population = devices if devices is not None else training_devices(config)
    units: tuple[Literal["user", "interaction"], ...] = ("user", "interaction") if unit == "both" else (unit,)
    return tuple(_scenario(config, each, population) for each in units)


def training_devices(config: Config) -> int:
    """Devices of the configured data set that train: all but those held out.

    Raises:
        ConfigError: the data set is not here.
    """
    name = config.data.name
    counts = {info.name: info.devices for info in list_datasets()} | {"synthetic": config.data.devices}
    found = counts.get(name)
    if found is None:
        raise ConfigError(f"expected a data set that is here, got {name!r}; fetch or import it, or give --devices")
    return found - min(round(config.data.holdout * found), found - 1)


def _scenario(config: Config, unit: Literal["user", "interaction"], devices: int) -> Scenario:
    privacy, local = config.privacy, config.local
    changes = changes_per_entry(config.policy, unit)
    separation = config.server.min_separation
    return Scenario(
        unit=unit,
        delta=privacy.delta,
        rounds=config.server.rounds,
        devices=devices,
        participation=config.server.participation / separation,
        separation=separation if separation > 1 else None,
        participations=privacy.max_participations if unit == "interaction" else None,
        local_steps=local.steps,
        sample_rate=privacy.sample_rate if unit == "interaction" else 1.0,
        examples=privacy.expected_batch / privacy.sample_rate,
        changes=changes,
        warm_share=privacy.warm_share if config.server.warm_start != "none" else None,
        pairs_share=privacy.pairs_share if config.server.warm_pairs else None,
        bit_noise=config.bit_noise(devices) if unit == "user" else None,
        clip_quantile=privacy.clip_quantile,
        clip=privacy.clip if unit == "user" else changes * privacy.example_clip,
        target_epsilon=privacy.epsilon,
        noise_multiplier=None if privacy.epsilon is not None else privacy.noise_multiplier,
        accountant=privacy.accountant,
        seeded=True,
    )
