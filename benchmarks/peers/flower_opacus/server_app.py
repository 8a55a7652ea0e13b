"""The server: federated averaging over sampled nodes, with a stopwatch."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import policy
import table
import torch
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg, Strategy
from logs import item_features
from opacus.accountants import RDPAccountant
from torch import nn

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and leave their times in the file ``result-file``."""
    config = context.run_config
    random.seed(config["seed"])
    torch.manual_seed(config["seed"])
    times: list[float] = []
    result = make_strategy(config, nodes=len(list(grid.get_node_ids()))).start(
        grid=grid,
        initial_arrays=initial_arrays(config),
        num_rounds=config["rounds"],
        evaluate_fn=lambda _round, _arrays: times.append(
            time.time()
        ),  # is called before the first and after each round
    )
    told = list(result.train_metrics_clientapp.values())
    figures = {
        "times": times,
        "replies": [int(metrics["replies"]) for metrics in told],
        "epsilon": epsilon(max(int(metrics["steps"]) for metrics in told), config),
    }
    Path(str(config["result-file"])).write_text(json.dumps(figures))


def make_strategy(config: dict[str, Any], nodes: int) -> Strategy:
    """Federated averaging; under the user's privacy in Flower's wrapper, which adds the noise."""
    average = FedAvg(
        fraction_train=config["devices"] / nodes,
        min_train_nodes=config["devices"],
        fraction_evaluate=0.0,
        train_metrics_aggr_fn=count_replies,
    )
    if config["work"] == "table":
        return average
    return DifferentialPrivacyClientSideFixedClipping(
        average,
        noise_multiplier=config["noise-multiplier"],
        clipping_norm=config["policy.clip"],
        num_sampled_clients=config["devices"],
    )


def initial_arrays(config: dict[str, Any]) -> ArrayRecord:
    """The model before the first round."""
    features = item_features()
    if config["work"] == "table":
        model = table.Recommender(len(features), config["table.dim"])
        nn.init.normal_(model.items.weight, std=0.1)
        return ArrayRecord(model.items.state_dict())
    return ArrayRecord(policy.Policy(features, config["policy.dim"]).state_dict())


def count_replies(replies: list[RecordDict], _weighted_by: str) -> MetricRecord:
    """How many devices answered, and the steps of the one that took most of them so far."""
    steps = max(int(reply.metric_records["metrics"]["steps"]) for reply in replies)
    return MetricRecord({"replies": len(replies), "steps": steps})


def epsilon(steps: int, config: dict[str, Any]) -> float | None:
    """What the device that took part most often has spent; the noise at the server is not accounted for here."""
    if config["work"] != "table":
        return None
    accountant = RDPAccountant()
    accountant.history = [(config["noise-multiplier"], config["table.sample-rate"], steps)]
    return accountant.get_epsilon(config["delta"])
