"""Kills a process that uses a device with SIGKILL just before each system call that writes; prints what was left.

The machinery is the ledger's (tests/privacy/kill_at_boundaries.py): one process that has imported everything is forked
for every call, and killed at the entry of its n-th write.
"""

import contextlib
import json
import sys
from pathlib import Path

from fedrec.client.device import Device
from fedrec.client.slate import Slate, Slot
from fedrec.client.store import Store
from fedrec.errors import FedrecError
from kill_at_boundaries import every_boundary

SECRET = "item-that-is-forgotten"
"""Its bytes must be gone."""


def tell(folder, what):
    """Outside of the store, without a buffer: this call was acknowledged."""
    with open(folder / "told", "ab", buffering=0) as told:
        told.write(f"{what}\n".encode())


def slate(item):
    """As the package before drew it: the item has left the catalogue, whose ids stay in the file."""
    slot = Slot(item=item, title=item, position=0, propensity=0.5, first_draw=0.5)
    return Slate(name="s", at=0, version=1, slots=(slot,), temperature=1.0, epsilon=0.0, diversity=0.0)


def use(folder):
    """Record, forget, withdraw consent and give it again; each is told once it was acknowledged."""
    with Device.open(folder / "device.sqlite", clock=lambda: 1_700_000_000.0) as device:
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
        with Device.open(folder / "device.sqlite", clock=lambda: 1_700_000_000.0) as device:
            items = [entry.item for entry in device.store.entries()]
            found = {"told": told, "items": items, "consent": device.consented}
            device.record(clicked=["5"])
            found["after"] = [entry.item for entry in device.store.entries()][-1]
    except FedrecError as error:
        return {"told": told, "error": str(error)}
    content = (folder / "device.sqlite").read_bytes()
    found["bytes"] = content.count(SECRET.encode())
    return found


def taking_part(folder):
    """A device with a few ratings, and what takes part in a round with it.

    Torch is imported here, when what needs none is over: a small process is forked in less time.
    """
    import device_world as one
    import torch
    from fedrec.client import participant
    from fedrec.client.wire import TrainOrder
    from fedrec.meta.adapt import Adaptation

    world = one.world(privacy__unit="interaction", server__warm_start="none", policy__state="personal")
    with one.device(folder / "device.sqlite", world) as device:
        device.consent(True)
        device.record(rating={str(number): 4.0 for number in range(6)})

    def unmoved(policy, start, *_, **__):
        """Takes no time: here it is the order of what is written that counts, not what is learned."""
        update = {name: torch.zeros_like(start[name]) for name in policy.released}
        return Adaptation(update=update, personal={"personal": start["personal"]})

    def train(folder):
        participant.adapt_device = unmoved
        with Device.open(folder / "device.sqlite") as device:
            order = TrainOrder(
                round=1, phi=world.initialization(), schema=world.policy.schema(), devices=None, run="run"
            )
            reply = participant.DeviceParticipant(device).train(order)
            tell(folder, f"{reply.status} 1")

    return train


def left_of_train(folder):
    from fedrec.privacy.ledger import Ledger

    told = (folder / "told").read_text().splitlines() if (folder / "told").exists() else []
    try:
        with Device.open(folder / "device.sqlite") as device:
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


def used(folder):
    """A device with a catalogue and one interaction, made without torch."""
    store = Store.create(folder / "device.sqlite")
    store.adopt(2, "{}", b"", [str(number) for number in range(9)])
    store.put("about", json.dumps({"reward_range": [1, 5]}))
    store.close()
    with Device.open(folder / "device.sqlite") as device:
        device.consent(True)
        device.record(clicked=["0"])


def main():
    root = Path(sys.argv[1])
    templates = {name: root / name for name in ("empty", "used", "trained")}
    for folder in templates.values():
        folder.mkdir()
    used(templates["used"])
    found = None
    with contextlib.suppress(PermissionError):
        found = {
            "begin": every_boundary(root, "begin", begin, left_of_begin, templates["empty"]),
            "use": every_boundary(root, "use", use, left_of_use, templates["used"]),
        }
        train = taking_part(templates["trained"])
        found["train"] = every_boundary(root, "train", train, left_of_train, templates["trained"])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
