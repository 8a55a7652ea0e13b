"""Kills a process that uses a device with SIGKILL just before each system call that writes; prints what was left.

The machinery is the ledger's (tests/privacy/kill_at_boundaries.py): one process that has imported everything is forked
for every call, and killed at the entry of its n-th write.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import device_world as one
import torch
from fedrec.client import participant as participant_module
from fedrec.client.device import Device
from fedrec.client.participant import DeviceParticipant
from fedrec.client.slate import Slate, Slot
from fedrec.client.store import Store
from fedrec.client.wire import TrainOrder
from fedrec.errors import FedrecError
from fedrec.meta.adapt import Adaptation
from fedrec.privacy.ledger import Ledger
from kill_at_boundaries import killed_before

SECRET = "item-that-is-forgotten"
"""Its bytes must be gone."""


def tell(folder, what):
    """Outside of the store, without a buffer: this call was acknowledged."""
    with open(folder / "told", "ab", buffering=0) as told:
        told.write(f"{what}\n".encode())


def slate(item):
    slot = Slot(item=item, title=item, position=0, propensity=0.5, first_draw=0.5)
    return Slate(name="s", at=0, version=1, slots=(slot,), temperature=1.0, epsilon=0.0, diversity=0.0)


def use(folder):
    """Record, forget, withdraw consent and give it again; each is told once it was acknowledged."""
    with Device.open(folder / "device.sqlite", clock=one.Clock()) as device:
        device.record(clicked=["1"])
        tell(folder, "recorded 1")
        device.record(slate(SECRET), clicked=[SECRET])
        tell(folder, "recorded 2")
        device.forget(item=SECRET)
        tell(folder, "forgot")
        device.consent(False)
        tell(folder, "withdrew")
        device.record(purchase=["4"])
        tell(folder, "recorded 4")


def left_of_use(folder):
    told = (folder / "told").read_text().splitlines() if (folder / "told").exists() else []
    try:
        with Device.open(folder / "device.sqlite", clock=one.Clock()) as device:
            items = [entry.item for entry in device.store.entries()]
            found = {"told": told, "items": items, "consent": device.consented}
            device.record(clicked=["5"])
            found["after"] = [entry.item for entry in device.store.entries()][-1]
    except FedrecError as error:
        return {"told": told, "error": str(error)}
    content = (folder / "device.sqlite").read_bytes()
    found["bytes"] = content.count(SECRET.encode())
    return found


WORLD = one.world(privacy__unit="interaction", server__warm_start="none", policy__state="personal")


def unmoved(policy, start, *_, **__):
    """An adaptation that takes no time: here the order of what is written counts, not what is learned."""
    update = {name: torch.zeros_like(start[name]) for name in policy.released}
    return Adaptation(update=update, personal={"personal": start["personal"]})


def train(folder):
    """Take part in two rounds; that there is an answer is told before it would leave."""
    participant_module.adapt_device = unmoved
    with Device.open(folder / "device.sqlite", clock=one.Clock()) as device:
        participant = DeviceParticipant(device)
        for number in (1, 2):
            order = TrainOrder(
                round=number, phi=WORLD.initialization(), schema=WORLD.policy.schema(), devices=None, run="run"
            )
            reply = participant.train(order)
            tell(folder, f"{reply.status} {number}")


def left_of_train(folder):
    told = (folder / "told").read_text().splitlines() if (folder / "told").exists() else []
    try:
        with Device.open(folder / "device.sqlite", clock=one.Clock()) as device:
            trainings = [training.name for training in device.store.trainings()]
            with Ledger.open(device.account.path) as ledger:
                debits = [debit.key for debit in ledger.debits()]
                settled = [debit.key for debit in ledger.debits() if debit.settled]
            device.account.begin(device.package)  # what the store remembers of the ledger fits it
    except FedrecError as error:
        return {"told": told, "error": str(error)}
    return {"told": told, "trainings": trainings, "debits": debits, "settled": settled}


def begin(folder):
    Store.create(folder / "device.sqlite").close()


def left_of_begin(folder):
    there = (folder / "device.sqlite").exists()
    try:
        if not there:
            begin(folder)
        Store.open(folder / "device.sqlite").close()
    except FedrecError as error:
        return {"error": str(error)}
    return {"there": there, "litter": sorted(path.name for path in folder.iterdir())}


def every_boundary(root, name, template, action, left):
    """Kill ``action`` before each of its writes, on a copy of ``template`` each time."""
    outcomes, call = [], 0
    while True:
        call += 1
        folder = root / f"{name}-{call}"
        shutil.copytree(template, folder)
        killed = killed_before(call, lambda folder=folder: action(folder))
        outcomes.append(left(folder))
        shutil.rmtree(folder)
        if not killed:
            return outcomes


def main():
    root = Path(sys.argv[1])
    (root / "empty").mkdir()
    for name in ("used", "trained"):
        (root / name).mkdir()
        with one.device(root / name / "device.sqlite", WORLD) as device:
            device.consent(True)
            device.record(clicked=["0"])
            if name == "trained":
                device.record(rating={str(number): 4.0 for number in range(6, 12)})
    with contextlib.suppress(PermissionError):
        found = {
            "begin": every_boundary(root, "begin", root / "empty", begin, left_of_begin),
            "use": every_boundary(root, "use", root / "used", use, left_of_use),
            "train": every_boundary(root, "train", root / "trained", train, left_of_train),
        }
        print(json.dumps(found))
        return
    print(json.dumps(None))


if __name__ == "__main__":
    main()
