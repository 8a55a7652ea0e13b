"""Kills a process that uses a ledger with SIGKILL just before each system call that writes; prints what was left.

The child is traced (ptrace, Linux): the parent lets it run from system call to system call, counts those that write,
sync, create, rename, truncate or delete a file, and kills it at the entry of the n-th, which then never happens. One
process that has imported everything is forked for each n, so that a kill costs some hundredths of a second.
"""

import contextlib
import ctypes
import errno
import json
import os
import platform
import shutil
import signal
import sys
import traceback
from pathlib import Path

from fedrec.errors import LedgerError
from fedrec.privacy.accounting import Charge
from fedrec.privacy.birth import create_ledger
from fedrec.privacy.ledger import Ledger, LedgerSettings

SETTINGS = LedgerSettings("interaction", 1e-5, None, "rdp")
CHARGE = Charge(50.0, 0.25, 1)
TRACEME, SYSCALL, SETOPTIONS, SYSCALL_INFO = 0, 24, 0x4200, 0x420E
MARK_STOPS_AND_DIE_WITH_PARENT = 1 | 0x100000
AT_ENTRY = 1
WRITES = {
    "x86_64": {1, 18, 20, 74, 75, 76, 77, 82, 83, 84, 87, 258, 263, 264, 285, 296, 316},
    "aarch64": {34, 35, 38, 45, 46, 47, 64, 66, 68, 70, 82, 83, 276},
}[platform.machine()]
OPENAT = {"x86_64": 257, "aarch64": 56}[platform.machine()]


class CallInfo(ctypes.Structure):
    """The head of Linux's ``struct ptrace_syscall_info``."""

    _fields_ = (
        ("stop", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("architecture", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )

    @property
    def writes(self):
        creates = self.number == OPENAT and self.arguments[2] & os.O_CREAT
        return self.stop == AT_ENTRY and bool(self.number in WRITES or creates)


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long


def ptrace(request, pid, first=0, second=None):
    if LIBC.ptrace(request, pid, ctypes.c_void_p(first), second) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def child(action):
    """Run ``action`` traced, from its beginning."""
    status = 1
    try:
        ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        action()
        status = 0
    except OSError as error:
        status = 3 if error.errno in (errno.EPERM, errno.ENOSYS) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def killed_before(call, action):
    """Kill ``action`` before its ``call``-th write; returns False if it made fewer and ended."""
    pid = os.fork()
    if pid == 0:
        child(action)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise PermissionError(errno.EPERM, "not allowed to trace")
    ptrace(SETOPTIONS, pid, 0, ctypes.c_void_p(MARK_STOPS_AND_DIE_WITH_PARENT))
    seen, passed_on = 0, 0
    while True:
        ptrace(SYSCALL, pid, 0, ctypes.c_void_p(passed_on))
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return False
            raise RuntimeError(f"the traced process failed with status {status}")
        stopped_by = os.WSTOPSIG(status)
        passed_on = 0 if stopped_by & 0x80 else stopped_by
        if stopped_by & 0x80:
            info = CallInfo()
            ptrace(SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.cast(ctypes.byref(info), ctypes.c_void_p))
            seen += info.writes
            if info.writes and seen == call:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return True


def spend(folder):
    """Open the ledger, debit, settle, debit again; each is told in a file once the ledger has said that it stands."""
    with open(folder / "acknowledged", "ab", buffering=0) as told, Ledger.open(folder / "ledger.sqlite") as ledger:
        for key in ("second", "third"):
            ledger.reserve_many(["a", "device:2"], CHARGE, key=key)
            told.write(f"{key}\n".encode())
            ledger.settle(key)
            told.write(f"settled {key}\n".encode())


def left(folder):
    """What a new process finds, and whether it can go on."""
    path = folder / "ledger.sqlite"
    told = (folder / "acknowledged").read_text().splitlines() if (folder / "acknowledged").exists() else []
    try:
        with Ledger.open(path) as ledger:
            steps = ledger.history("a")[0].steps
            settled = [key for key in ("first", "second", "third") if ledger.is_settled(key)]
            ledger.reserve("a", CHARGE, key="after")
        with Ledger.open(path) as ledger:
            after = ledger.history("a")[0].steps
    except LedgerError as error:
        return {"error": str(error), "told": told}
    return {"told": told, "steps": steps, "settled": settled, "after": after}


def every_boundary(root, name, action, left, template=None):
    """Kill ``action`` before each of its writes, each time in a folder of its own: a copy of ``template``, or empty.

    Returns what ``left`` finds in each folder; the last time nothing is killed.
    """
    outcomes, call = [], 0
    while True:
        call += 1
        folder = root / f"{name}-{call}"
        if template is None:
            folder.mkdir()
        else:
            shutil.copytree(template, folder)
        killed = killed_before(call, lambda folder=folder: action(folder))
        outcomes.append(left(folder))
        shutil.rmtree(folder)
        if not killed:
            return outcomes


def spending(root):
    """Kill before every write of ``spend``."""
    template = root / "template"
    template.mkdir()
    with Ledger.create(template / "ledger.sqlite", unit="interaction", delta=1e-5, budget_epsilon=None) as ledger:
        ledger.reserve_many(["a", "device:1"], CHARGE, key="first")
        ledger.settle("first")
    return every_boundary(root, "spend", spend, left, template)


def creating(root):
    """Kill before every write of a ledger's creation, then create it if it is not there and use it."""
    return every_boundary(root, "create", lambda folder: create_ledger(folder / "ledger.sqlite", SETTINGS), created)


def created(folder):
    path = folder / "ledger.sqlite"
    there = path.exists()
    if not there:
        create_ledger(path, SETTINGS)
    with Ledger.open(path) as ledger:
        ledger.reserve("a", CHARGE, key="first")
    return {"there": there, "litter": sorted(file.name for file in folder.iterdir())}


def main():
    with contextlib.suppress(PermissionError):
        print(json.dumps({"spend": spending(Path(sys.argv[1])), "create": creating(Path(sys.argv[1]))}))
        return
    print(json.dumps(None))


if __name__ == "__main__":
    main()
