"""The ServerApp: Flower's entrance to the round loop."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .._launcher import end_with_launcher
from ..config import Config
from .loop import run_federation
from .plan import FederationPlan, FederationResult

PRIVATE_PREFIX = "fedrec-"
"""Run-config keys that begin so are the app's own and no part of the configuration."""


def make_server_app(
    build: Callable[[Context, Config], FederationPlan],
    finish: Callable[[Context, Config, FederationPlan, FederationResult], None] | None = None,
    configure: Callable[[Context], Config] | None = None,
) -> ServerApp:
    """A ServerApp that reads the run config, asks ``build`` for the plan, runs the loop and hands over to ``finish``.

    ``configure`` finds the configuration elsewhere than in the run config.

    Raises (when it runs):
        ConfigError: a key of the run config is unknown or wrong.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        end_with_launcher()
        config = (configure or config_of)(context)
        plan = build(context, config)
        result = run_federation(grid, plan, config)
        if finish is not None:
            finish(context, config, plan, result)

    return app


def config_of(context: Context) -> Config:
    """The configuration in a context's run config, the app's own ``fedrec-`` keys left out."""
    run_config = context.run_config.items()
    return Config.from_flat({key: value for key, value in run_config if not key.startswith(PRIVATE_PREFIX)})
