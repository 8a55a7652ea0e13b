"""How many devices a second does Apple's pfl-research simulator adapt?

    python -m venv pfl-env && pfl-env/bin/pip install -r benchmarks/peers/pfl/requirements.txt
    pfl-env/bin/python benchmarks/peers/pfl/run.py --data logs.npz --devices 943 --rounds 4

Runs in an environment without fedrec, which writes the training logs for it: ``np.savez(path, items=items,
offsets=offsets, items_count=1682)``, where user ``u`` has the catalogue rows ``items[offsets[u]:offsets[u + 1]]``.
Prints one line of JSON; all else goes to the error stream.

The work is the nearest that pfl offers to ``table`` of the Flower peer: a user vector and an item table of 1,682 x 32
numbers, full softmax, 5 local steps on Poisson batches (rate 0.25, divisor 25), the update of the table clipped and
summed, Gaussian noise. What is not equal stands in ``DIFFERENCES`` and in the output.

pfl simulates all devices of a worker in one process, one after the other, without messages between them. Two workers of
one torch thread each suit two cores; with two threads one worker was far slower on a busy machine. The first round, in
which pfl also evaluates, counts as startup; ``seconds_per_round`` is the median of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pfl
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from torch import Tensor, nn
from torch.nn import functional

DIM = 32
STEPS = 5
LEARNING_RATE = 0.2
CLIP = 0.5
NOISE_MULTIPLIER = 1.0
SAMPLE_RATE = 0.25
EXPECTED_BATCH = 25
USER = "user.weight"

DIFFERENCES = (
    "no DP-SGD on the device: pfl has none; the gradient of a whole batch is clipped, not that of every interaction",
    "no noise in local steps: one draw a round, on the sum (--noise central) or on every update (--noise device)",
    "the update of a user is clipped as a whole: the unit of privacy is the user, not the interaction",
    "devices share a process: no messages, nothing is serialised",
    "with several workers a user's vector starts anew where the user comes to another worker",
)
_STARTED = "PFL_PEER_STARTED"


class Recommender(nn.Module):
    """Scores every item by the inner product of its row and the user's vector; ``loss`` and ``metrics`` are pfl's."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.user = nn.Embedding(1, DIM)
        self.items = nn.Linear(DIM, items, bias=False)
        nn.init.normal_(self.items.weight, std=0.1)

    def forward(self, users: Tensor) -> Tensor:
        """Scores ``[batch, items]`` for the user's row, which is 0, ``[batch]``."""
        scores: Tensor = self.items(self.user(users))
        return scores

    def loss(self, items: Tensor) -> Tensor:
        """Summed cross-entropy over the public divisor: finite for an empty batch."""
        return functional.cross_entropy(self(torch.zeros_like(items)), items, reduction="sum") / EXPECTED_BATCH

    @torch.no_grad()
    def metrics(self, items: Tensor) -> dict[str, Any]:
        """Mean cross-entropy, asked for in the first round only."""
        return {"loss": Weighted(self.loss(items).item() * EXPECTED_BATCH, len(items))}


class PoissonDataset(Dataset):
    """The log of a user, handed out in Poisson batches of a public rate, a public number of times."""

    def iter(self, batch_size: int | None) -> Iterator[list[Tensor]]:
        """Batches of a local epoch; for evaluation (no batch size) the whole log."""
        (items,) = self.raw_data
        if batch_size is None:
            yield [items]
            return
        for _ in range(STEPS):
            yield [items[torch.rand(len(items)) < SAMPLE_RATE]]


class PersonalAveraging(FederatedAveraging):
    """Federated averaging of the item table; user vectors are trained with it and stay where they are."""

    def __init__(self, users: int) -> None:
        super().__init__()
        self._vectors = 0.1 * torch.randn(users, DIM)

    def train_one_user(
        self, initial_model_state: Any, model: PyTorchModel, user_dataset: Dataset, central_context: Any
    ) -> tuple[Any, Metrics]:
        """Train with the user's own vector in place, and leave it out of the update."""
        own, kept = model.variable_map[USER].data, self._vectors[user_dataset.user_id]
        own.copy_(kept)
        update, metrics = super().train_one_user(initial_model_state, model, user_dataset, central_context)
        kept.copy_(own[0])
        update.pop(USER)
        return update, metrics


class Stopwatch(TrainingProcessCallback):
    """Remembers when each round was over."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        """Note the time; never stop the training."""
        self.times.append(time.time())
        return False, Metrics()


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and let the first worker print the figures."""
    started = float(os.environ.setdefault(_STARTED, str(time.time())))
    load, asked = os.getloadavg()[0], _parse(arguments)
    if asked.workers > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        relaunch(asked.workers, asked.threads)
    torch.set_num_threads(asked.threads)
    times = simulate(asked)
    peak = peak_rss_mb()
    part()
    if pytorch_ops.distributed.global_rank != 0:
        return
    rounds = [end - start for start, end in pairwise(times)]
    figures = {
        "devices_per_second": asked.devices / statistics.median(rounds),
        "seconds_per_round": statistics.median(rounds),
        "devices_per_round": asked.devices,
        "rounds": asked.rounds,
        "round_seconds": rounds,
        "startup_seconds": times[0] - started,
        "peak_rss_mb": peak,
        "load_at_start": load,
        "workers": asked.workers,
        "threads": asked.threads,
        "noise": asked.noise,
        "pfl": pfl.__version__,
        "torch": torch.__version__,
        "differences": "; ".join(DIFFERENCES),
    }
    print(json.dumps(figures))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=".npz file with items, offsets and items_count")
    parser.add_argument("--devices", type=int, default=943, help="users of a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds, the first of which is not timed")
    parser.add_argument("--noise", choices=("central", "device"), default="central", help="where noise is added")
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    asked = parser.parse_args(arguments)
    if asked.rounds < 2:
        parser.error(f"expected --rounds >= 2, since the first is not timed, got {asked.rounds}")
    return asked


def relaunch(workers: int, threads: int) -> None:
    """Start this script again under torch's own launcher, on the loopback device; does not return."""
    os.environ |= {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *launcher, "--nproc-per-node", str(workers), *sys.argv])


def part() -> None:
    """Leave the group of workers together: one that is still in it when another ends would be aborted."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def simulate(asked: argparse.Namespace) -> list[float]:
    """Train; returns the time at the end of every round."""
    np.random.seed(asked.seed)  # noqa: NPY002 - pfl draws from numpy's global state
    torch.manual_seed(asked.seed)
    data = np.load(asked.data)
    logs = [torch.from_numpy(log.astype(np.int64)) for log in np.split(data["items"], data["offsets"][1:-1])]
    module = Recommender(int(data["items_count"]))
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    stopwatch = Stopwatch()
    PersonalAveraging(len(logs)).run(
        NNAlgorithmParams(
            central_num_iterations=asked.rounds,
            evaluation_frequency=asked.rounds,
            train_cohort_size=asked.devices,
            val_cohort_size=0,
        ),
        backend(logs, asked.noise),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=LEARNING_RATE,
            local_batch_size=EXPECTED_BATCH,
            local_max_grad_norm=CLIP,
        ),
        NNEvalHyperParams(local_batch_size=None),
        [stopwatch],
        send_metrics_to_platform=False,
    )
    return stopwatch.times


def backend(logs: list[Tensor], noise: str) -> SimulatedBackend:
    """Users in turn, their updates clipped, noise on the sum or on each of them."""
    users = FederatedDataset(
        lambda user: PoissonDataset((logs[user],), user_id=user), get_user_sampler("minimize_reuse", range(len(logs)))
    )
    mechanism = GaussianMechanism(CLIP, NOISE_MULTIPLIER)
    postprocessor = CentrallyAppliedPrivacyMechanism(mechanism) if noise == "central" else mechanism
    return SimulatedBackend(training_data=users, val_data=users, postprocessors=[postprocessor])


def peak_rss_mb() -> float:
    """Peak resident memory of all workers together."""
    own = torch.tensor([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024])
    (total,) = pytorch_ops.distributed.all_reduce([own])
    return float(total)


if __name__ == "__main__":
    main()
