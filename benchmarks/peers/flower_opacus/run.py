"""How many devices a second does Flower's simulation engine adapt, one virtual node a user?

    python benchmarks/peers/flower_opacus/run.py --work table --devices 200 --rounds 3

Runs the Flower app in this folder with ``flwr run`` (``run_simulation`` is deprecated) on Ray: one node for each of
the 943 users of MovieLens 100K, of which ``--devices`` are sampled in a round. Prints one line of JSON; all else goes
to the error stream.

``--work table``: what Flower's Opacus example does, its accounting corrected: each sampled node takes 5 DP-SGD steps
on its user's training log (Poisson rate 0.25, divisor 25, clip 0.5, noise multiplier 1), one example an interaction,
full softmax, on a personal vector and a table of 1,682 items x 32 numbers, and returns the table. Flower's example
converts its account to epsilon on every node in every round, which takes Opacus 80 ms, and so does ``--account node``.
With ``--account server`` nodes count their steps and the server converts once, after the rounds: what somebody would
write who had looked where the time goes.

``--work default``: fedrec's default policy as a plain module, 5 steps of plain SGD on 8 positions of the log; the
update is clipped by Flower's modifier, the noise added by Flower's strategy wrapper.

Settings are the fastest that were found on two cores: two Ray processes of one torch thread each (three were no faster;
two threads were ten times slower on a busy machine), Ray's logs not copied, and about 200 nodes a round: Flower's
engine looks through all waiting messages for every node that exists, again and again.

Times are those of the server: the first round, in which Ray starts and its workers import torch, counts as startup;
``seconds_per_round`` is the median of the others, from choosing the nodes to the averaged model. Memory is the sum of
the resident sets of all processes, every half second; pages that Ray's processes share are counted in each.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedrec.simulation.data import registry

HERE = Path(__file__).parent
MEGABYTE = 1 << 20
DIFFERENCES = {
    "table": "epsilon is worked out on every node in every round with --account node, as in Flower's example, or once",
    "default": "a fixed number of nodes is sampled in a round, as Flower's strategies do",
}
_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the app to its end, stop all that it started, print the figures."""
    asked = _parse(arguments)
    users = registry.load("ml-100k").devices
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with temporary_homes() as (home, ray):
        try:
            figures = measure(asked, users, home, ray)
        finally:
            stop_descendants()
    print(json.dumps(figures))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("table", "default"), default="table", help="what a device does")
    parser.add_argument("--account", choices=("node", "server"), default="node", help="where epsilon is worked out")
    parser.add_argument("--devices", type=int, default=200, help="nodes sampled in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, the first of which is not timed")
    parser.add_argument("--actors", type=int, default=2, help="Ray processes that run nodes, one core each")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of nodes and of the first model")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds after which the run is given up")
    asked = parser.parse_args(arguments)
    if asked.rounds < 2:
        parser.error(f"expected --rounds >= 2, since the first is not timed, got {asked.rounds}")
    return asked


def measure(asked: argparse.Namespace, users: int, home: Path, ray: Path) -> dict[str, Any]:
    """Run the app and return its figures."""
    result_file, log_file = home / "result.json", home / "run.log"
    settings = {name: getattr(asked, name) for name in ("work", "devices", "rounds", "seed", "account")}
    command = flower_command(settings | {"result-file": str(result_file)}, users, asked.actors, home)
    load, launched = os.getloadavg()[0], time.time()
    with log_file.open("w") as log:
        process = subprocess.Popen(
            command,
            env=environment(home, ray, asked.threads),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    peak = watch(process, launched + asked.timeout)
    if process.returncode != 0 or not result_file.exists():
        sys.exit(f"the Flower run failed; the end of its log:\n{log_file.read_text()[-4000:]}")
    result = json.loads(result_file.read_text())
    if result["replies"] != [asked.devices] * asked.rounds:
        sys.exit(f"expected {asked.devices} replies in every round, got {result['replies']}")
    times = result["times"]
    rounds = [end - start for start, end in pairwise(times[1:])]
    return {
        "devices_per_second": asked.devices / statistics.median(rounds),
        "seconds_per_round": statistics.median(rounds),
        "devices_per_round": asked.devices,
        "rounds": asked.rounds,
        "round_seconds": rounds,
        "startup_seconds": times[1] - launched,
        "peak_rss_mb": peak / MEGABYTE,
        "load_at_start": load,
        "work": asked.work,
        "account": asked.account,
        "nodes": users,
        "actors": asked.actors,
        "threads": asked.threads,
        "epsilon": result["epsilon"],
        "differences": DIFFERENCES[asked.work],
    }


def flower_command(settings: Mapping[str, Any], nodes: int, actors: int, home: Path) -> list[str]:
    """``flwr run`` of this folder; settings go through a TOML file."""
    run_config = home / "run-config.toml"
    run_config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    federation = {
        "num-supernodes": nodes,
        "init-args-num-cpus": actors,
        "init-args-log-to-driver": "false",
        "client-resources-num-cpus": 1,
        "client-resources-num-gpus": 0,
    }
    options = " ".join(f"{name}={value}" for name, value in federation.items())
    return ["flwr", "run", str(HERE), "--stream", "--run-config", str(run_config), "--federation-config", options]


def environment(home: Path, ray: Path, threads: int) -> dict[str, str]:
    """Flower and Ray with homes and ports of their own, on the loopback device, telling nobody."""
    http, control = free_ports(2)
    scripts = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(ray),
        "UV_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "NO_PROXY": "127.0.0.1,localhost",
        "PATH": os.pathsep.join([*scripts, os.environ.get("PATH", "")]),
    }


@contextmanager
def temporary_homes() -> Iterator[tuple[Path, Path]]:
    """Directories for Flower and for Ray; the latter's name is short, because it holds sockets."""
    home, ray = tempfile.mkdtemp(prefix="flower-"), tempfile.mkdtemp(prefix="ray-")
    try:
        yield Path(home), Path(ray)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(ray, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def watch(process: subprocess.Popen[bytes], deadline: float) -> int:
    """Wait for the process to end; returns the largest memory of the whole tree in bytes."""
    peak = 0
    while process.poll() is None:
        if time.time() > deadline:
            sys.exit("the Flower run took longer than --timeout allows")
        peak = max(peak, sum(resident_bytes(number) for number in descendants()))
        time.sleep(0.5)
    return peak


def adopt_orphans() -> None:
    """Become the parent of processes that detach themselves, as Flower's SuperLink does (Linux only)."""
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0) != 0:
        sys.exit("expected Linux, where processes that Flower detaches can be found and stopped again")


def descendants() -> set[int]:
    """Ids of all processes that this one started, directly or not."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended in the meantime
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    new = {os.getpid()}
    while new := {number for number, parent in parents.items() if parent in new}:
        found |= new
    return found


def resident_bytes(number: int) -> int:
    """Resident set of a process, shared pages included."""
    try:
        pages = int(Path(f"/proc/{number}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def stop_descendants(patience: float = 20.0) -> None:
    """End what is left: politely, then not."""
    patient_until = time.time() + patience
    while left := descendants():
        order = signal.SIGTERM if time.time() < patient_until else signal.SIGKILL
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, order)
        time.sleep(0.5)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    main()
