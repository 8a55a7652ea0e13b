"""A tiny federation of known devices, for tests: real ClientApp, real grid, updates that anybody can recompute."""

from dataclasses import dataclass, field

import numpy as np
import torch
from fedrec._streams import torch_stream
from fedrec.client.app import make_client_app
from fedrec.client.wire import TrainReply
from fedrec.config import Config
from fedrec.privacy.mechanisms import clip_updates
from fedrec.server.plan import FederationPlan
from fedrec.simulation.grid import LocalGrid

CLIP = 0.4
SCALES = {"bias": 0.5}
SHAPES = {"bias": (5,), "items": (5, 3), "temperature": ()}
POPULATION = 12


def config(**changes):
    values = {
        "seed": 3,
        "privacy__clip": CLIP,
        "privacy__epsilon": None,
        "privacy__noise_multiplier": 1.0,
        "server__rounds": 6,
        "server__warm_start": "none",
        "server__participation": 0.5,
        "server__nodes": 3,
        "server__average": 0.5,
        "evaluation__every": 2,
        "evaluation__metric": "score",
    }
    return Config().updated(**(values | changes))


def phi0():
    return {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def update_of(device, round_number, phi):
    """A pull towards the device's own target, with a bit of chance; longer than the clip for most devices."""
    generator = torch_stream(11, round_number, device, "world")
    pull = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in SHAPES.items()}
    return {name: 0.2 * (0.1 * device - phi[name]) + pull[name] for name in SHAPES}


def stacked(devices, round_number, phi):
    updates = [update_of(int(device), round_number, phi) for device in devices]
    return {name: torch.stack([update[name] for update in updates]) for name in SHAPES}


def clipped(devices, round_number, phi, clip=CLIP):
    return clip_updates(stacked(devices, round_number, phi), clip, SCALES)


def clipped_sum(devices, round_number, phi, clip=CLIP):
    if len(devices) == 0:
        return {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return {name: value.float() for name, value in clipped(devices, round_number, phi, clip).value.items()}


@dataclass
class Cohort:
    """Answers with the clipped sum of the devices it is asked for; ``before`` may interfere."""

    before: object = None
    orders: list = field(default_factory=list)
    bad: tuple = ()

    def train(self, order):
        self.orders.append(order)
        if self.before is not None:
            self.before(order)
        if order.stacked:
            return self.stack(order)
        total = clipped_sum(order.devices, order.round, order.phi, order.clip or CLIP)
        bits = None
        if order.clip is not None:
            bits = int((~clipped(order.devices, order.round, order.phi, order.clip).was_clipped).sum())
        return TrainReply(order.round, order.schema, update=total, devices=len(order.devices), unclipped=bits)

    def stack(self, order):
        """Every device's own update; those in ``bad`` send it blown up and turned round."""
        rows = stacked(order.devices, order.round, order.phi)
        turned = torch.from_numpy(np.isin(order.devices, self.bad))
        for value in rows.values():
            value[turned] *= -30
        count = len(order.devices)
        return TrainReply(order.round, order.schema, update=rows, devices=count, rows=np.arange(count))


def validate(round_number, served):
    """Rises, then falls: the best round is neither the first nor the last."""
    return {"score": 1.0 - abs(round_number - 4) / 10 + 1e-3 * float(served["bias"].sum())}


def plan(run_dir, **changes):
    values = {
        "phi0": phi0(),
        "schema": "world-1",
        "population": POPULATION,
        "run_dir": run_dir,
        "noise_multiplier": 1.0,
        "scales": SCALES,
        "validate": validate,
    }
    return FederationPlan(**(values | changes))


def grid(cohort=None, nodes=3, **options):
    shared = cohort or Cohort()
    return LocalGrid(make_client_app(lambda context: shared), nodes, **options)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def outcome(run_dir, result):
    """All that two equal runs share, to the bit."""
    from fedrec.privacy.ledger import Ledger

    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.rows]
    tensors = {
        f"{group}/{name}": tensor.numpy().tobytes().hex()
        for group in ("phi", "served", "best")
        for name, tensor in getattr(result, group).items()
    }
    ledger = None
    if (run_dir / "ledger.sqlite").exists():
        with Ledger.open(run_dir / "ledger.sqlite") as opened:
            ledger = opened.export()
    scalars = [result.best_round, result.best_metric, result.rounds, result.stop, dict(result.epsilon)]
    return {"rows": rows, "tensors": tensors, "ledger": ledger, "scalars": scalars}
