"""The device: receives the model, adapts it to its user's log and returns it."""

from __future__ import annotations

import logging
import warnings

import policy
import table
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from logs import item_features, log_of

warnings.filterwarnings("ignore", category=UserWarning)  # as Flower's example: Opacus warns of its own hooks
logging.getLogger("opacus").setLevel(logging.ERROR)

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round; under the user's privacy the update is clipped by Flower's own modifier."""
    if context.run_config["work"] == "table":
        return train_table(message, context)
    return fixedclipping_mod(message, context, train_policy)


def train_table(message: Message, context: Context) -> Message:
    """DP-SGD on the item table and on the user's vector, which stays here."""
    config = context.run_config
    received = message.content.array_records["arrays"].to_torch_state_dict()
    model = table.Recommender(*received["weight"].shape)
    model.items.load_state_dict(received)
    table.recall_personal(model, context)
    accountant = table.open_account(context, config)
    table.train(model, log_of(context).items, accountant, config)
    table.keep_personal(model, context)
    if config["account"] == "node":
        logging.info("epsilon so far: %.2f", accountant.get_epsilon(config["delta"]))
    steps = table.close_account(accountant, context)
    return _reply(message, ArrayRecord(model.items.state_dict()), steps)


def train_policy(message: Message, context: Context) -> Message:
    """Plain SGD on the default policy."""
    config = context.run_config
    model = policy.Policy(item_features(), config["policy.dim"])
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    examples = policy.sample_examples(log_of(context), config["policy.windows"], config["policy.history"])
    policy.train(model, examples, config)
    return _reply(message, ArrayRecord(model.state_dict()), config["policy.steps"])


def _reply(message: Message, arrays: ArrayRecord, steps: int) -> Message:
    """Every device counts 1: a weight that tells how much data it has would not be covered by the noise."""
    metrics = MetricRecord({"num-examples": 1, "steps": steps})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
