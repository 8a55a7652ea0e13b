"""A deployment in one process: the real apps, real stores and a signed bundle, on the in-process grid."""

from dataclasses import replace

import small_world as small
from fedrec.client.app import make_client_app
from fedrec.client.bundle import load_bundle, make_bundle
from fedrec.client.bundle_file import sign
from fedrec.client.bundle_keys import load_private_key, load_public_key, make_keys
from fedrec.client.device import Device
from fedrec.client.participant import DeviceParticipant
from fedrec.server.deployment import Deployment, server_app
from fedrec.simulation.grid import LocalGrid
from fedrec.simulation.packages import package_for
from flwr.app import Context, RecordDict

DEVICES = 3


def deployment(root, version=1, **changes):
    """A signed bundle in ``root`` and a federation of three devices over it."""
    values = {"privacy__unit": "both", "server__rounds": 2, "server__warm_start": "none", "server__participation": 1.0}
    world = small.world(**(values | changes))
    make_keys(root / "maker")
    content = make_bundle(package_for(world, world.initialization(), version=version), ())
    (root / "policy.bundle").write_bytes(sign(content, load_private_key(root / "maker")))
    return Deployment(
        bundle=root / "policy.bundle",
        key=root / "maker.pub",
        run_dir=root / "run",
        population=DEVICES,
        nodes=DEVICES,
        deadline=100.0,
    )


def devices(root):
    """Stores with five clicks each, from the bundle in ``root``."""
    package = load_bundle(root / "policy.bundle", [load_public_key(root / "maker.pub")]).package
    for number in range(DEVICES):
        with Device.create(root / f"device-{number}.sqlite", package) as device:
            device.consent(True)
            items = [str(item) for item in package.catalogue.item_ids]
            device.record(clicked=items[number :: DEVICES + 1][:5])


def participant(root, context):
    """The device of a node of the grid; opened for one order, as a process of its own would."""

    class Opened:
        def train(self, order):
            with Device.open(root / f"device-{context.node_config['partition-id']}.sqlite") as device:
                return DeviceParticipant(device).train(order)

    return Opened()


def hold(root, deployed, grid=None, **changes):
    """Run the ServerApp over the devices in ``root``."""
    run_config = {key: value for key, (value, _) in replace(deployed, **changes).run_config().items()}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    server_app(grid or local_grid(root), context)


def local_grid(root):
    return LocalGrid(make_client_app(lambda context: participant(root, context)), DEVICES)
