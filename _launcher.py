"""An app ends with the process that launched it, even while Flower waits without a limit.

Flower tells an app's process who launched it (``--parent-pid``) and raises SIGINT in a thread once that process is
gone. Python runs the handler in the main thread, between two of its instructions: a main thread that waits for a lock
without a limit never gets there. Flower (1.42) waits so while it pulls the objects of a message or pushes those of an
answer, and what pulls and pushes tries for ever while nobody answers. An app that a killed SuperLink or SuperNode
leaves in such a moment stays: a ServerApp with the lock of its run, so that the run can't be resumed, a ClientApp with
its memory. A signal that the operating system delivers to the main thread ends the wait.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise

_OPTION = "--parent-pid"
GRACE = 10.0
"""Seconds for Flower's own way out, which takes at most five once it has begun."""
_POLL = 0.5
_watching = threading.Event()


def end_with_launcher(grace: float = GRACE) -> None:
    """From now on wake the main thread by SIGINT, ``grace`` seconds after the process that launched this app is gone.

    Does nothing in a process that nobody launched as Flower does, where the system can't signal a thread, and the
    second time.
    """
    launcher = _launcher(sys.argv)
    if launcher is None or launcher != os.getppid() or not hasattr(signal, "pthread_kill") or _watching.is_set():
        return
    _watching.set()
    threading.Thread(target=_watch, args=(launcher, grace), name="launcher", daemon=True).start()


def _launcher(arguments: Sequence[str]) -> int | None:
    for option, value in pairwise(arguments):
        if option == _OPTION and value.isdecimal():
            return int(value)
    return None


def _watch(launcher: int, grace: float) -> None:
    while os.getppid() == launcher:  # unlike its number, which stays taken until somebody collects it
        time.sleep(_POLL)
    time.sleep(grace)
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
