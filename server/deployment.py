"""The ServerApp of a deployment: one device a node, privacy noise from OS entropy, and no data set anywhere near it.

All that the server has to know of the policy stands in the signed bundle that the devices have adopted: initialization,
configuration, schema. What the operator decides stands in the run config of the app folder (``fedrec deploy init``
writes it): see :class:`Deployment`. Nothing of that reaches a device: its rules are those of its own bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flwr.app import Context

from ..client.bundle import Bundle, load_bundle
from ..client.bundle_keys import load_public_key
from ..config import Config
from ..errors import ConfigError
from ..meta.examples import changes_per_entry
from .app import PRIVATE_PREFIX, make_server_app
from .budget import BudgetPlan, plan_budget, warm_floor
from .plan import FederationPlan, FederationResult
from .release import write_release

RESUME = "fedrec-resume"
"""Run-config key: go on from the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What an operator decides about a federation: the run config of the app folder, key by key."""

    bundle: Path = field(metadata={"meaning": "the signed bundle that the devices have adopted, an absolute path"})
    key: Path = field(metadata={"meaning": "public key of its signer, an absolute path"})
    run_dir: Path = field(metadata={"meaning": "where checkpoints, ledger and metrics lie, an absolute path"})
    population: int = field(
        metadata={"meaning": "devices of the federation, a public constant: who is not there is a missing reply"}
    )
    nodes: int = field(default=1, metadata={"meaning": "devices to wait for before the first round"})
    deadline: float = field(
        default=600.0, metadata={"meaning": "seconds after which a round goes on without the missing replies"}
    )
    resume: bool = field(default=False, metadata={"meaning": "go on with the run in there"})

    def __post_init__(self) -> None:
        """Refuse relative paths (Flower starts the app somewhere else) and numbers out of range.

        Raises:
            ConfigError: naming the key of the run config.
        """
        for name in ("bundle", "key", "run_dir"):
            if not getattr(self, name).is_absolute():
                raise ConfigError(f"expected {_key(name)} to be an absolute path, got {str(getattr(self, name))!r}")
        for name, least in (("population", 2), ("nodes", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"expected {_key(name)} to be an integer >= {least}, got {value!r}")
        if self.nodes > self.population:
            raise ConfigError(
                f"expected {_key('nodes')} of at most the population, {self.population}, got {self.nodes}; lower it"
            )
        if type(self.resume) is not bool:
            raise ConfigError(f"expected {_key('resume')} to be true or false, got {self.resume!r}")
        if type(self.deadline) not in (int, float) or not (math.isfinite(self.deadline) and self.deadline > 0):
            raise ConfigError(f"expected {_key('deadline')} > 0, got {self.deadline!r}")

    @classmethod
    def of(cls, run_config: Mapping[str, Any]) -> Deployment:
        """What a run config says.

        Raises:
            ConfigError: a key is missing, unknown or wrong.
        """
        known = {_key(one.name): one.name for one in fields(cls)}
        odd = sorted(set(run_config) ^ set(known))
        if odd:
            state = "missing" if odd[0] in known else "unknown"
            raise ConfigError(f"expected the keys {', '.join(known)} in the run config, got {odd[0]!r} {state}")
        values = {known[key]: value for key, value in run_config.items()}
        values |= {name: Path(str(values[name])) for name in ("bundle", "key", "run_dir")}
        return cls(**values)

    def run_config(self) -> dict[str, tuple[bool | float | int | str, str]]:
        """Key -> value and meaning, in order: what :meth:`of` reads."""
        found: dict[str, tuple[bool | float | int | str, str]] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            found[_key(one.name)] = (str(value) if isinstance(value, Path) else value, one.metadata["meaning"])
        return found

    def load(self) -> Bundle:
        """The bundle, its signature checked.

        Raises:
            BundleError: it or the key can't be used.
        """
        return load_bundle(self.bundle, [load_public_key(self.key)])

    def config(self, bundle: Bundle) -> Config:
        """The federation's configuration: the bundle's, without patience, as a server has nothing to judge on."""
        return bundle.package.config.updated(server__patience=None)

    def plan(self, bundle: Bundle) -> FederationPlan:
        """Everything that the round loop is told."""
        package, config = bundle.package, self.config(bundle)
        budget = budget_of(bundle, config, self.population)
        noise = package.noise
        return FederationPlan(
            phi0=package.phi,
            schema=package.schema,
            trained=package.policy.released,
            population=self.population,
            run_dir=self.run_dir,
            noise_multiplier=None if budget.user is None else budget.user.adapt,
            warm_noise_multiplier=None if budget.user is None else budget.user.warm,
            pairs_noise_multiplier=None if budget.user is None else budget.user.pairs,
            warm_floor=warm_floor(config, budget, self.population),
            scales=config.privacy.scales_of(package.policy.released),
            simulation=False,
            single=True,
            # A round that is held again is debited again on a device: only what its ledger allows bounds what it spent.
            epsilon=None if noise is None else lambda _: {"interaction": noise.epsilon},
            least_nodes=self.nodes,
            deadline=self.deadline,
            resume=self.resume,
        )


def budget_of(bundle: Bundle, config: Config, population: int) -> BudgetPlan:
    """Noise and statements of a federation that begins from ``bundle``; the noise will not be seeded."""
    changes = changes_per_entry(bundle.package.policy, config.privacy.unit)
    return plan_budget(config, changes=changes, population=population, seeded=False)


def _key(name: str) -> str:
    return PRIVATE_PREFIX + name.replace("_", "-")


def _configure(context: Context) -> Config:
    deployment = Deployment.of(context.run_config)
    return deployment.config(deployment.load())


def _build(context: Context, config: Config) -> FederationPlan:
    deployment = Deployment.of(context.run_config)
    return deployment.plan(deployment.load())


def _finish(context: Context, config: Config, plan: FederationPlan, result: FederationResult) -> None:
    bundle = Deployment.of(context.run_config).load()
    write_release(plan.run_dir, bundle, budget_of(bundle, config, plan.population).statements, result.best)


server_app = make_server_app(_build, _finish, _configure)
