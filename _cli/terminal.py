"""The two streams of the command line, and how an exception becomes one sentence and an exit code.

Results go to the output stream, everything else (progress, warnings, errors) to the error stream.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..errors import FedrecError

DONE, UNEXPECTED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

_FILE_WIDTH = 120
_PACKAGE = Path(__file__).resolve().parents[1]


class Interrupted(Exception):
    """Ctrl-C, with a sentence that says how to go on."""


def output() -> Console:
    """Where results go; wide enough for the tables when it is a file."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console


@cache
def errors(*, quiet: bool = False) -> Console:
    """Where progress, warnings and errors go; one object, so that a warning does not run into a live display."""
    return Console(stderr=True, highlight=False, quiet=quiet)


def say(message: str) -> None:
    """One plain line on the error stream: it may hold anything, brackets included."""
    errors().print(Text(message, style="dim"), soft_wrap=True)


def quieten(*, debug: bool | None = None) -> None:
    """Give every logger one plain handler, and keep libraries from talking over the command's own words.

    Call it again, without ``debug``, after Flower was imported: importing it installs handlers of its own.
    """
    if debug is None:
        debug = logging.getLogger("fedrec").level == logging.INFO
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, handlers=[_PlainHandler(debug=debug)], force=True)
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
    flower.setLevel(logging.INFO if debug else logging.ERROR)
    logging.getLogger("fedrec").setLevel(logging.INFO if debug else logging.WARNING)


class _PlainHandler(logging.Handler):
    """A record as one line; its traceback only when debugging. That a run was interrupted, the command says itself."""

    def __init__(self, *, debug: bool) -> None:
        super().__init__()
        self._debug = debug

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        if str(record.msg).startswith("interrupted"):
            return
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text += f" ({type(error).__name__}: {error})"
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        console = errors()
        console.print(Text(text, style=style), soft_wrap=not console.is_terminal)
        if error is not None and self._debug:
            errors().print("".join(traceback.format_exception(error)), markup=False)


def guarded(action: Callable[[], object], *, debug: bool) -> int:
    """Run ``action`` and return an exit code; a failure is told in one sentence, its traceback only with ``debug``."""
    try:
        code = action()
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exception(error)
        return _told(error)
    return code if isinstance(code, int) else DONE


def _told(error: BaseException) -> int:
    """Print the sentence of an exception and return its exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else UNEXPECTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    if isinstance(error, Interrupted):
        _fail(str(error), style="yellow")
        return INTERRUPTED
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        _fail("interrupted", style="yellow")
        return INTERRUPTED
    usage = getattr(error, "format_message", None)
    if usage is not None:
        said = _once(usage())
        if said:  # without any command the help has said it all
            _fail(f"{said}{'' if said.endswith(('.', '?', '!')) else '.'} See 'fedrec --help'.")
        return WRONG_INPUT
    if isinstance(error, FedrecError) or (isinstance(error, ValueError) and _raised_here(error)):
        _fail(str(error))
        return WRONG_INPUT
    _fail(f"unexpected {type(error).__name__}: {error}; run again with --debug for the details")
    return UNEXPECTED


def _raised_here(error: BaseException) -> bool:
    """Whether fedrec's own code raised it: then its message is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _PACKAGE in Path(frames[-1].filename).resolve().parents


def _once(text: str) -> str:
    """Click and typer both add a suggestion: drop sentences that were said before."""
    return " ".join(dict.fromkeys(re.split(r"(?<=[.?!]) +", text)))


def _fail(message: str, style: str = "bold red") -> None:
    errors().print(Text.assemble(("fedrec: ", style), (" ".join(message.split()), style)), soft_wrap=True)
