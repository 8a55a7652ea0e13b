"""A ClientApp for tests only: a device that behaves, or a node that does with its reply what its ``mood`` says."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from fedrec.client.app import make_client_app
from fedrec.client.participant import participant_of

PATIENCE = 600.0


class Moody:
    """The device's own participant, whose replies are held back or falsified."""

    def __init__(self, context):
        self.honest = participant_of(context)
        self.mood = str(context.node_config.get("mood", "well"))
        self.path = Path(str(context.node_config["device"]))

    def train(self, order):
        reply = self.honest.train(order)
        return getattr(self, self.mood.split(":")[0])(order, reply)

    def well(self, order, reply):
        """As a device."""
        return reply

    def held(self, order, reply):
        """What was debited is on disk; the reply waits for as long as a file ``.hold`` names the round."""
        hold = self.path.with_suffix(".hold")
        end = time.monotonic() + PATIENCE
        while hold.exists() and hold.read_text() == str(order.round) and time.monotonic() < end:
            self.path.with_suffix(f".held-{order.round}").touch()
            time.sleep(0.1)
        return reply

    def nan_then_replay(self, order, reply):
        """Round 1: NaN. Later: what would have been right in round 1."""
        kept = self.path.with_suffix(".reply")
        if order.round == 1:
            torch.save(reply.update, kept)
            return changed(reply, lambda value: value * float("nan"))
        return replace(reply, round=1, update=torch.load(kept))

    def shape_then_large(self, order, reply):
        """Round 1: a row too many. Later: a hundred times too large."""
        if order.round == 1:
            return changed(reply, lambda value: torch.cat([value.reshape(-1), torch.zeros(1)]))
        return changed(reply, lambda value: value * 100)


def changed(reply, change):
    return replace(reply, update={name: change(value) for name, value in reply.update.items()})


client_app = make_client_app(Moody)
