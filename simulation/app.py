"""The two Flower apps of a simulated federation, for ``flwr run`` on any of Flower's engines.

The run config holds the whole configuration as dotted keys, and two keys of the app's own: ``fedrec-run-dir`` and
``fedrec-resume``. Every node hosts a cohort of the data set's devices.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from flwr.app import Context

from ..client.app import make_client_app
from ..config import Config
from ..server.app import make_server_app
from ..server.plan import FederationPlan, FederationResult
from .federation import RESUME, RUN_DIR, cohort_in, plan_of, world_of
from .results import conclude


def _build(context: Context, config: Config) -> FederationPlan:
    resume = context.run_config.get(RESUME, False) is True
    return plan_of(world_of(tuple(sorted(config.flat().items()))), _run_dir(context), resume=resume)


def _finish(context: Context, config: Config, plan: FederationPlan, result: FederationResult) -> None:
    conclude(world_of(tuple(sorted(config.flat().items()))), plan.run_dir, result)


def _run_dir(context: Context) -> Path:
    return Path(cast(str, context.run_config[RUN_DIR]))


server_app = make_server_app(_build, _finish)
client_app = make_client_app(cohort_in)
