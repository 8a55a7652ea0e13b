"""A simulated cohort as a Flower participant: many devices behind one node, each with its own account and state.

Durable order within a round: debit every device, adapt, write the personal parameters of the round, settle, answer. A
seeded round that is repeated after a crash finds its debits and releases the same bits again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from .. import _durable
from .._streams import torch_stream
from ..client.adaptation import LocalMechanism
from ..client.phases import ballot, charge_of, release_key, round_config
from ..client.wire import TrainOrder, TrainReply
from ..config import Config, Unit
from ..errors import LedgerError, RunError, WireError
from ..meta import pairs
from ..meta.examples import changes_per_entry
from ..meta.policy import Named
from ..meta.popularity import NAME as WARM_STARTED
from ..privacy.accounting import epsilon
from ..privacy.birth import create_ledger
from ..privacy.entropy import SeededNoise
from ..privacy.ledger import Ledger, LedgerSettings
from ..server.budget import BudgetPlan, plan_budget
from .boost import adapt_boosted
from .cohort import CohortResult, Work, adapt_cohort
from .schedule import device_floats
from .workers import Workers, worker_count
from .world import Logs, World

DEVICE_LEDGER = "devices.sqlite"
STARTED = "devices.started"
"""Stands beside a device ledger from its creation on: where it stands alone, the ledger was lost."""
_KEPT = 3  # rounds before the last that a checkpoint can ask for


class Cohort:
    """Adapts the devices of one simulated node; a ``client.app.Participant``.

    Ledger and personal parameters lie in a directory named by the node's place in the roster, not by its Flower id, so
    that a run that is resumed on other nodes finds them.
    """

    def __init__(self, world: World, nodes_dir: Path, nodes: int) -> None:
        """Serve one of ``nodes`` parts of ``world``'s devices; what must last lies below ``nodes_dir``."""
        self._world = world
        self._config: Config = world.config
        self.root = nodes_dir
        self._nodes = nodes
        self._place: int | None = None
        self._budget: BudgetPlan = plan_budget(self._config, changes=changes_per_entry(world.policy, self._unit))
        self._mechanism = None
        if self._budget.interaction is not None:
            self._mechanism = LocalMechanism.of(world.policy, self._config, self._budget.interaction.adapt)
        self._personal = PersonalStore(nodes_dir, world)
        self._ledger: Ledger | None = None
        self._workers: Workers | None = None
        self._decided = False

    @property
    def _unit(self) -> Unit:
        return self._config.privacy.unit

    def train(self, order: TrainOrder) -> TrainReply:
        """Adapt the ordered devices that can pay, and answer with the sum of what may leave.

        Raises:
            WireError: the order is for another policy or names no device of this world.
            LedgerError: the ledger is missing or altered: nothing is trained.
        """
        config = round_config(order, self._config)
        devices = self._devices(order)
        paid, refused = self._pay(order, devices)
        if not len(paid):
            return TrainReply(order.round, order.schema, "refused", refused=refused)
        result = self._released(order, paid, config)
        if self._ledger is not None:
            self._ledger.settle(release_key(order))
            self._remember(self._ledger)
        released = result.each if order.stacked else result.total
        return TrainReply(
            order.round,
            order.schema,
            update={name: value.to(torch.float32) for name, value in released.items()},
            devices=len(paid),
            refused=refused,
            unclipped=None if order.clip is None else result.unclipped,
            rows=np.searchsorted(devices, paid) if order.stacked else None,
        )

    def _devices(self, order: TrainOrder) -> NDArray[np.int64]:
        if order.schema != self._world.policy.schema():
            raise WireError(f"expected an order for policy {self._world.policy.schema()}, got {order.schema}")
        if order.devices is None or order.devices[-1] >= len(self._world.roster):
            raise WireError(f"expected an order for some of {len(self._world.roster)} devices, got another")
        places = np.unique(order.devices % self._nodes)
        if len(places) != 1:
            raise WireError(
                f"expected an order for one of {self._nodes} nodes, got devices of {len(places)} of them; "
                "let all nodes be there before the first round"
            )
        self._settle_in(int(places[0]))
        return self._world.roster[order.devices]

    def _settle_in(self, place: int) -> None:
        """Open the store of the node's place in the roster."""
        if place == self._place:
            return
        if self._ledger is not None:
            self._ledger.close()
        self._check_division()
        directory = self.root / f"node-{place}-of-{self._nodes}"
        directory.mkdir(parents=True, exist_ok=True)
        self._personal = PersonalStore(directory, self._world)
        self._ledger = _device_ledger(directory / DEVICE_LEDGER, self._config, self._budget)
        if self._ledger is not None:
            self._check_counter(self._ledger, place)
        self._place = place

    def _counter(self, place: int) -> Path:
        """Rows and head of the node's ledger after its last round, kept outside of the node's own directory."""
        return self.root / f"devices-{place}-of-{self._nodes}.counter"

    def _remember(self, ledger: Ledger) -> None:
        _durable.replace_file(self._counter(self._place or 0), f"{ledger.count} {ledger.head}\n".encode())

    def _check_counter(self, ledger: Ledger, place: int) -> None:
        """Refuse a ledger that went back in time together with its witness, as when a directory is restored."""
        path = self._counter(place)
        if not path.exists():
            return
        count, _, head = path.read_text(encoding="ascii", errors="replace").strip().partition(" ")
        if not (count.isdecimal() and ledger.extends(int(count), head)):
            ledger.close()
            raise LedgerError(
                f"the device ledger in {self.root} is older than {path} says, or another's; restore the newer copy, "
                "nothing may be trained on this one"
            )

    def _check_division(self) -> None:
        """Refuse to divide the devices anew: their accounts and personal parameters lie where they began."""
        for other in self.root.glob("node-*-of-*"):
            if not other.name.endswith(f"-of-{self._nodes}"):
                raise LedgerError(
                    f"expected {self._nodes} nodes as before, got {other.name} in {self.root}; "
                    "go on with as many nodes as the run began with"
                )

    def close(self) -> None:
        """Release the ledger and the worker processes."""
        if self._ledger is not None:
            self._ledger.close()
        if self._workers is not None:
            self._workers.close()

    def _pay(self, order: TrainOrder, devices: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Debit every device; those whose budget is exhausted stay out and are counted."""
        noise = self._budget.interaction
        if self._ledger is None or noise is None:
            return devices, 0
        charge = charge_of(order.round, self._config, noise)
        paid = self._ledger.reserve_numbered("device", devices, charge, key=release_key(order), replay=True).accepted
        return paid, len(devices) - len(paid)

    def _released(self, order: TrainOrder, devices: NDArray[np.int64], config: Config) -> CohortResult:
        """What the round is for: the sum of what these devices answer."""
        phase = self._config.phase(order.round)
        if phase == "popularity":
            return self._votes(order.round, devices)
        return self._pairs(order.phi, devices) if phase == "pairs" else self._adapt(order, devices, config)

    def _pairs(self, phi: Named, devices: NDArray[np.int64]) -> CohortResult:
        """The sum of the devices' votes on what goes together."""
        world, server = self._world, self._config.server
        count = min(server.warm_pairs, world.policy.items)
        total = torch.zeros(pairs.cells(count), dtype=torch.float64)
        known = pairs.Popular.of(phi[WARM_STARTED], count)
        for device in devices.tolist():
            items = world.log(device, world.split.train_end[device]).items
            total += known.vote(items, server.warm_window)
        return CohortResult(total={pairs.NAME: total}, personal={})

    def _votes(self, round_number: int, devices: NDArray[np.int64]) -> CohortResult:
        """The warm start: the sum of the devices' histograms, each noised by itself under unit ``interaction``."""
        world = self._world
        total = torch.zeros(world.policy.items, dtype=torch.float64)
        noise = self._budget.interaction
        for device in devices.tolist():
            items = world.log(device, world.split.train_end[device]).items
            source = None
            if noise is not None:
                source = SeededNoise(torch_stream(self._config.seed, round_number, device, "local-noise"))
            total += ballot(items, world.policy.items, self._config, noise, source).double()
        return CohortResult(total={WARM_STARTED: total}, personal={})

    def _adapt(self, order: TrainOrder, devices: NDArray[np.int64], config: Config) -> CohortResult:
        personal = self._personal.load(order.round - 1)
        result = adapt_boosted(
            lambda some, settings: self._adapted(order, some, settings, personal),
            devices,
            self._world.outliers,
            config,
        )
        self._personal.save(order.round, personal, devices, result.personal)
        return result

    def _adapted(self, order: TrainOrder, devices: NDArray[np.int64], config: Config, personal: Named) -> CohortResult:
        world, unit = self._world, self._config.privacy.unit
        stream = (self._config.seed, order.round)
        logs = Logs(world=world, devices=devices, stops=world.split.train_end[devices], unit=unit, stream=stream)
        work = Work(
            devices=devices,
            sizes=logs.sizes,
            examples=logs,
            personal={name: value[torch.from_numpy(devices)] for name, value in personal.items()},
        )
        return adapt_cohort(
            world.policy,
            order.phi,
            work,
            config,
            self._mechanism,
            round_number=order.round,
            workers=self._helpers(logs.sizes),
            each=order.stacked,
        )

    def _helpers(self, sizes: NDArray[np.int64]) -> Workers | None:
        """Worker processes where they are asked for or are worth their start: decided with the first adaptation."""
        if not self._decided:
            floats = device_floats(self._world.policy, sizes, self._config, private=self._mechanism is not None)
            count = worker_count(self._config, int(floats.sum()))
            self._workers = Workers(self._world, count) if count > 1 else None
            self._decided = True
        return self._workers


class PersonalStore:
    """Personal parameters of a node's devices, one file a round; nothing is written for a policy without any.

    The last rounds are kept and those that were validated, one of which will be chosen.
    """

    def __init__(self, directory: Path, world: World) -> None:
        """Keep them in ``directory``."""
        self._directory = directory
        self._world = world
        self._names = world.policy.names(scope="personal")

    def path(self, round_number: int) -> Path:
        """The file after ``round_number``."""
        return self._directory / f"personal-{round_number:06d}.safetensors"

    def load(self, round_number: int) -> Named:
        """The parameters after ``round_number``, ``[devices of the data set, *shape]``.

        A round without an order for this node writes nothing: what the last one before it wrote still stands. The
        first order writes the start too, so that its round can be held again after a crash.

        Raises:
            RunError: the node has begun, and no file of that round or one before it is there.
        """
        if not self._names:
            return {}
        written = self._rounds(round_number)
        if written:
            return dict(load_file(self.path(written[-1])))
        if round_number > 0 and self._rounds():
            raise RunError(
                f"expected the personal parameters of round {round_number} in {self._directory}, got none; "
                "restore the whole run directory or start over"
            )
        return self._world.personal_start(self._world.dataset.devices)

    def save(self, round_number: int, before: Named, devices: NDArray[np.int64], new: Named) -> None:
        """Write the parameters after ``round_number``: ``before`` with ``new`` in the rows ``devices``."""
        if not self._names:
            return
        if not self._rounds():
            self._write(0, before)
        after = {name: before[name].clone() for name in self._names}
        for name, value in after.items():
            value[torch.from_numpy(devices)] = new[name]
        self._write(round_number, after)
        self._prune(round_number)

    def _write(self, round_number: int, values: Named) -> None:
        _durable.sweep(self._directory, "personal-")
        _durable.replace_file(self.path(round_number), save(values))

    def _rounds(self, last: int | None = None) -> list[int]:
        """Rounds with a file, up to ``last``, in order."""
        found = sorted(
            int(path.stem.removeprefix("personal-")) for path in self._directory.glob("personal-*.safetensors")
        )
        return [number for number in found if last is None or number <= last]

    def _prune(self, round_number: int) -> None:
        """Drop what neither a checkpoint nor a validated round can ask for."""
        every = self._world.config.evaluation.every
        asked = [*range(every, round_number, every), *range(max(0, round_number - _KEPT), round_number + 1)]
        written = self._rounds(round_number)
        needed = {max((number for number in written if number <= wanted), default=-1) for wanted in asked}
        for number in set(written) - needed:
            self.path(number).unlink(missing_ok=True)


def _device_ledger(path: Path, config: Config, budget: BudgetPlan) -> Ledger | None:
    """The ledger of a node's devices: one account a device, each with the whole budget.

    Where the noise is given, the budget is the epsilon that was told: nobody takes part more often than it covers.
    """
    if budget.interaction is None:
        return None
    privacy = config.privacy
    planned = epsilon(budget.interaction.charges, privacy.delta, privacy.accountant)
    settings = LedgerSettings("interaction", privacy.delta, privacy.epsilon or planned, privacy.accountant)
    started = path.with_name(STARTED)
    if not path.exists():
        if started.exists():
            raise LedgerError(f"expected the device ledger {path}, got none; nothing may be trained without it")
        create_ledger(path, settings)
    started.touch()
    return Ledger.open(path)


def personal_of(world: World, nodes_dir: Path, round_number: int) -> Named | None:
    """Personal parameters of all devices after ``round_number``, gathered from every node; none for a policy without.

    A simulation's diagnostic: in a deployment they never leave their devices.
    """
    names = world.policy.names(scope="personal")
    if not names:
        return None
    gathered = world.personal_start(world.dataset.devices)
    directories = sorted(path for path in nodes_dir.glob("node-*") if path.is_dir())
    for directory in directories:
        place, _, count = directory.name.removeprefix("node-").partition("-of-")
        own = PersonalStore(directory, world).load(round_number)
        rows = torch.from_numpy(world.roster[np.arange(len(world.roster)) % int(count) == int(place)])
        for name, value in gathered.items():
            value[rows] = own[name][rows]
    return gathered
