"""The two Flower apps of a simulated federation, for ``flwr run`` on any of Flower's engines.

The run config holds the configuration as dotted keys (what is left out keeps its default), and two keys of the app's
own: ``fedrec-run-dir`` and ``fedrec-resume``. Every node hosts a cohort of the data set's devices.
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Context

from ..client.app import make_client_app
from ..config import Config
from ..server.app import make_server_app
from ..server.plan import FederationPlan, FederationResult
from .federation import RESUME, cohort_in, plan_of, run_dir_of, world_of
from .results import conclude
from .run import claim
from .start import read_start
from .world import World


def _build(context: Context, config: Config) -> FederationPlan:
    run_dir, resume = run_dir_of(context), context.run_config.get(RESUME, False) is True
    world = _world(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    claim(run_dir, config, resume, world.dataset)
    return plan_of(replace(world, start=read_start(run_dir, config)), run_dir, resume=resume)


def _finish(context: Context, config: Config, plan: FederationPlan, result: FederationResult) -> None:
    conclude(replace(_world(config), start=read_start(plan.run_dir, config)), plan.run_dir, result)


def _world(config: Config) -> World:
    return world_of(tuple(sorted(config.flat().items())))


server_app = make_server_app(_build, _finish)
client_app = make_client_app(cohort_in)
