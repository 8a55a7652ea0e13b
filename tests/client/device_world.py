"""One device of a tiny federation, with its data set's log in its store."""

import small_world as small
from fedrec.client.device import Device
from fedrec.simulation.packages import package_for


class Clock:
    """Stands still until it is told."""

    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def __call__(self):
        return self.now


def world(**changes):
    return small.world(**changes)


def package(world, version=1, phi=None):
    return package_for(world, phi or world.initialization(), version=version)


def device(path, world, key=None, clock=None, **changes):
    return Device.create(path, package(world, **changes), key, clock=clock or Clock())


def fill(device, world, number, stop=None):
    """Record the log of a data set's device, one interaction after the other."""
    data = world.dataset
    for row in range(data.offsets[number], data.offsets[number + 1] if stop is None else stop):
        device.record(rating={str(data.catalogue.item_ids[data.items[row]]): float(data.rewards[row])})
    return device
