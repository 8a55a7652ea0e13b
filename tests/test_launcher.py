"""An app whose launcher dies ends, in whatever its main thread waits."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from fedrec._launcher import end_with_launcher

# What Flower does: a handler of its own, a thread that raises SIGINT when the launcher is gone, pulls that never end.
APP = """
import os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor, as_completed
import fedrec._launcher as launcher

def flower(number):
    while True:
        time.sleep(0.1)
        try:
            os.kill(number, 0)
        except OSError:
            return signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, lambda *_: (print("told", flush=True), os._exit(3)))
threading.Thread(target=flower, args=(int(sys.argv[-1]),), daemon=True).start()
if "watched" in sys.argv:
    launcher.end_with_launcher(0.5)
print(os.getpid(), flush=True)
pull = ThreadPoolExecutor(1).submit(time.sleep, 60)
next(as_completed([pull]))
"""
LAUNCHER = "import subprocess, sys, os; subprocess.Popen([*sys.argv[1:], '--parent-pid', str(os.getpid())]).wait()"
PATIENCE = 30.0


def launched(*words):
    """A launcher with an app below it; returns the launcher and the app's process id."""
    command = [sys.executable, "-c", LAUNCHER, sys.executable, "-c", APP, *words]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return launcher, int(launcher.stdout.readline())


def left(launcher, seconds):
    """What the app still says before it lets go of its output, None if it doesn't within some seconds."""
    os.set_blocking(launcher.stdout.fileno(), False)
    end, said = time.monotonic() + seconds, b""
    while time.monotonic() < end:
        with suppress(BlockingIOError):
            new = os.read(launcher.stdout.fileno(), 100)
            if not new:
                return said.decode()
            said += new
        time.sleep(0.05)
    return None


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads on this system")
@pytest.mark.parametrize(("words", "seconds", "said"), [(("watched",), PATIENCE, "told\n"), ((), 3.0, None)])
def test_an_app_that_waits_without_a_limit_ends_with_its_launcher(words, seconds, said):
    launcher, app = launched(*words)
    try:
        launcher.kill()
        launcher.wait()
        assert left(launcher, seconds) == said  # unwatched it stays, as Flower has it: the reason for the module
    finally:
        with suppress(ProcessLookupError):
            os.kill(app, signal.SIGKILL)
        launcher.stdout.close()


def test_nothing_is_watched_that_flower_did_not_launch(monkeypatch):
    started = []
    monkeypatch.setattr("fedrec._launcher.threading.Thread", lambda **told: started.append(told))
    for arguments in (["app"], ["app", "--parent-pid"], ["app", "--parent-pid", "x"], ["app", "--parent-pid", "1"]):
        monkeypatch.setattr("sys.argv", arguments)
        end_with_launcher()
    assert started == []
