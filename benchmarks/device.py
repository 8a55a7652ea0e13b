"""What the device SDK costs: import, recommend, record, adapt, and the memory of a device that adapts under a limit.

    python benchmarks/device.py                 # times, on ten thousand items
    python benchmarks/device.py --memory 256    # the default policy (ml-100k) under a limit of 256 MB
    python benchmarks/device.py --memory 320 --unit interaction

The limit is a memory cgroup where one may be made (pages of files that other processes have read before count as
theirs), and RLIMIT_DATA elsewhere, which counts private memory only. ``ulimit -v`` says little here: torch maps more
than a GB of libraries that it never reads.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

ITEMS, LOGGED, REPEATS = 10_000, 200, 100
_CGROUP = Path("/sys/fs/cgroup/memory")
_IMPORT = (
    "import time; t = time.perf_counter(); import fedrec; fedrec.Device; "
    "print(time.perf_counter() - t, time.process_time())"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=int, help="limit in MB")
    parser.add_argument("--unit", default="user", help="privacy unit of the federation")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        print(json.dumps(adapt_all(Path(chosen.inside))))
    elif chosen.memory:
        under_limit(chosen.memory, chosen.unit)
    else:
        times()


def times() -> None:
    """Medians over many calls, one thread."""
    import torch

    torch.set_num_threads(1)
    table = Table("call", "median ms", "processor ms", box=None)
    started = []
    for _ in range(5):
        wall, processor = subprocess.check_output([sys.executable, "-c", _IMPORT]).split()
        started.append((float(wall), float(processor)))
    table.add_row("import fedrec; fedrec.Device", *shown(started))
    with tempfile.TemporaryDirectory() as folder, made(Path(folder) / "device.sqlite", ITEMS) as device:
        device.consent(True)
        ids = [str(item) for item in device.package.catalogue.item_ids]
        for item in ids[:LOGGED]:
            device.record(rating={item: 5.0})
        device.adapt()
        slate = device.recommend(k=10)
        clicked = [slate.items[0]]
        slates = (replace(slate, name=f"slate-{number}") for number in itertools.count())
        table.add_row(f"recommend, all {ITEMS:,}", *shown(timed(lambda: device.recommend(k=10))))
        table.add_row(f"recommend, {ITEMS:,} candidates by id", *shown(timed(lambda: device.recommend(ids, k=10))))
        table.add_row("record a click and ten impressions", *shown(timed(lambda: device.record(next(slates), clicked))))
        table.add_row("fsync of 4 KB, for comparison", *shown(fsyncs(Path(folder))))
        table.add_row(f"adapt on {LOGGED} and more", *shown(timed(device.adapt, 10)))
        table.add_row("explain", *shown(timed(lambda: device.explain(ids[-1]), 20)))
        table.add_row("forget one item", *shown(timed(lambda: device.forget(item=clicked[0]), 5)))
    console = Console()
    console.print(table)
    console.print("record commits with synchronous = FULL: one fsync of the write-ahead log each time")


def timed(call: Callable[[], object], repeats: int = REPEATS) -> list[tuple[float, float]]:
    """Seconds on the clock and of the processor: the second do not grow where others keep the machine busy."""
    found = []
    for _ in range(repeats):
        began, worked = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - began, time.process_time() - worked))
    return found


def shown(seconds: list[tuple[float, float]]) -> tuple[str, ...]:
    return tuple(f"{1000 * statistics.median(some):.2f}" for some in zip(*seconds, strict=True))


def fsyncs(folder: Path) -> list[tuple[float, float]]:
    with (folder / "probe").open("wb", buffering=0) as file:

        def flush() -> None:
            file.write(b"x" * 4096)
            os.fsync(file.fileno())

        return timed(flush)


@contextlib.contextmanager
def made(path: Path, items: int | None, unit: str = "user") -> Iterator:
    """A device of the default policy: over a synthetic catalogue of so many items, or over ml-100k."""
    from fedrec.client.device import Device
    from fedrec.config import Config
    from fedrec.simulation.packages import package_for
    from fedrec.simulation.world import World

    config = Config().updated(privacy__unit=unit)
    if items is not None:
        config = config.updated(data__name="synthetic", data__items=items, data__devices=50)
    world = World.build(config)
    with Device.create(path, package_for(world, world.initialization())) as device:
        yield device


def under_limit(megabytes: int, unit: str) -> None:
    """Adapt the default policy in a process that may not take more."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "device.sqlite"
        with made(path, None, unit) as device:
            device.consent(True)
            for item in device.package.catalogue.item_ids[:100]:
                device.record(rating={str(item): 4.0})
        with group(megabytes) as (how, enter):
            command = [sys.executable, __file__, "--inside", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, preexec_fn=enter, check=False)
    print(f"limit: {megabytes} MB by {how}")
    if done.returncode:
        print(f"ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:] or 'killed'}")
        sys.exit(1)
    for stage in json.loads(done.stdout):
        print("  {stage:34} resident {peak:4.0f} MB at most, private {private:4.0f} MB".format(**stage))


@contextlib.contextmanager
def group(megabytes: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """A limit, and what a child does before it begins to come under it."""
    own = _CGROUP / f"fedrec-{os.getpid()}"
    limit = megabytes * 2**20
    try:
        own.mkdir()
        (own / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        yield "RLIMIT_DATA", lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        return
    try:
        yield "cgroup", lambda: (own / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        own.rmdir()


def adapt_all(path: Path) -> list[dict[str, object]]:
    """Record, recommend, adapt locally, take part: peaks after each."""
    from fedrec.client.device import Device

    stages = []

    def stage(name: str) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, private = (int(status[field].split()[0]) / 1024 for field in ("VmHWM", "RssAnon"))
        stages.append({"stage": name, "peak": peak, "private": private})

    with Device.open(path) as device:
        device.record(clicked=["150"])
        stage("record")
        import torch

        torch.set_num_threads(1)
        stage("import torch")
        device.recommend(k=10)
        stage("recommend")
        device.adapt()
        stage("adapt (local)")
        from fedrec.client.participant import DeviceParticipant
        from fedrec.client.wire import TrainOrder

        package = device.package
        order = TrainOrder(round=2, phi=package.phi, schema=package.schema, devices=None, run="benchmark")
        reply = DeviceParticipant(device).train(order)
        stage(f"take part (unit {package.config.privacy.unit}): {reply.status}")
    return stages


if __name__ == "__main__":
    main()
