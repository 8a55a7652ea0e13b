"""Follows a run: a live display in a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..server.plan import RoundReport
    from ..simulation.world import World

_PLAIN_LINES = 10
"""Lines that a federation may write to a log file, the last round's included."""


class Progress:
    """A :class:`fedrec.simulation.run.Listener` for people.

    Keeps the label of the federation, its round, the epsilon spent and the validation, and says when it will be over.
    """

    def __init__(self, console: Console, *, live: bool, closing: bool = True) -> None:
        """Show it on ``console``.

        Args:
            console: where to.
            live: redraw in place; otherwise there is a line every tenth of the rounds.
            closing: leave a line of each stage behind that is over.
        """
        self._console = console
        self._closing = closing
        self._live = Live(console=console, refresh_per_second=8, transient=True) if live else None
        self._work: _Work | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(whole=error is None)
        if self._live is not None:
            self._live.stop()

    def stage(self, text: str) -> None:
        """Something new begins; "kind: what" after another of its kind goes on with the same line."""
        if self._work is None or not self._work.goes_on(text):
            self._begin(_Work(text))

    def started(self, world: World, label: str, rounds: int) -> None:
        """A federation of ``rounds`` rounds begins (or goes on)."""
        privacy = world.config.privacy
        target = None if privacy.unit == "none" else privacy.epsilon
        self._begin(_Federation(label, rounds, len(world.roster), world.config.evaluation.metric, target))

    def round(self, report: RoundReport) -> None:
        """A round is over and safe on disk."""
        if not isinstance(self._work, _Federation):
            return
        self._work.add(report)
        if self._live is None and self._work.is_line_due():
            self._console.print(self._work.line(), soft_wrap=True)

    def _begin(self, work: _Work) -> None:
        self._finish(whole=True)
        self._work = work
        if self._live is not None:
            self._live.update(work)
        else:
            self._console.print(work.opening(), soft_wrap=True)

    def _finish(self, *, whole: bool) -> None:
        """Leave a line of what was done; a live display only, a log file has its lines already."""
        if self._work is not None and self._live is not None:
            mark = ("✓", "green") if whole else ("·", "yellow")
            self._live.update(Text(""))
            if self._closing:
                took = (f" {clock(self._work.elapsed):>5}  ", "dim")
                self._console.print(Text.assemble(mark, took, self._work.closing()))
        self._work = None


class _Work:
    """A stage without rounds."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._steps = 1
        self._since = time.perf_counter()
        self._spinner = Spinner("dots", style="cyan")

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._since

    def goes_on(self, text: str) -> bool:
        """Take ``text`` as the next step of this stage, if it is one."""
        kind, separator, _ = text.partition(":")
        if not separator or kind != self._text.partition(":")[0]:
            return False
        self._text = text
        self._steps += 1
        return True

    def opening(self) -> Text:
        """The line of a log file."""
        return Text(self._text.partition(":")[0])

    def closing(self) -> Text:
        """The line that stays behind."""
        kind = self._text.partition(":")[0]
        return Text(kind + (f" ({self._steps} steps)" if self._steps > 1 else ""))

    def __rich__(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(self._spinner, Text(self._text), Text(clock(self.elapsed), style="dim"))
        return grid


class _Federation(_Work):
    """A federation in progress."""

    def __init__(self, label: str, rounds: int, devices: int, metric: str, target: float | None) -> None:
        super().__init__(label)
        self._rounds = rounds
        self._population = devices
        self._metric = metric
        self._target = target
        self._last: RoundReport | None = None
        self._best: tuple[float, int] | None = None
        self._latest: float | None = None
        self._first = 1

    def add(self, report: RoundReport) -> None:
        """A further round."""
        if self._last is None:
            self._first = report.round
        self._last = report
        value = (report.validation or {}).get(self._metric)
        if value is None:
            return
        self._latest = value
        if self._best is None or value > self._best[0]:
            self._best = (value, report.round)

    def is_line_due(self) -> bool:
        """Whether a tenth of the rounds has passed, or the last."""
        done, step = self._done, max(1, round(self._rounds / _PLAIN_LINES))
        return done == self._rounds or done % step == 0

    @property
    def _done(self) -> int:
        return 0 if self._last is None else self._last.round

    def _left(self) -> float | None:
        """Seconds that the remaining rounds will take at the pace of this process; none before the first."""
        held = self._done - self._first + 1 if self._last is not None else 0
        return None if held < 1 else self.elapsed / held * (self._rounds - self._done)

    def opening(self) -> Text:
        return Text(f"{self._text}: {self._rounds} rounds with {self._population:,} devices")

    def closing(self) -> Text:
        if self._last is None:
            return Text(f"{self._text}: complete already")
        text = Text.assemble((self._text, "bold"), f": round {self._done} of {self._rounds}")
        if self._best is not None:
            text.append(f", best {self._metric} {self._best[0]:.4f} in round {self._best[1]}", style="cyan")
        if self._last.epsilon:
            text.append(f", {spent(self._last.epsilon, self._target)}", style="magenta")
        return text

    def line(self) -> Text:
        """The state on one line, for a log file."""
        left = self._left()
        time_left = f", {clock(left)} left" if left else ""
        facts = "".join(str(part[0]) for part in self._facts())
        return Text(f"{self._text}: round {self._done}/{self._rounds}{facts}  {clock(self.elapsed)}{time_left}")

    def _facts(self) -> list[tuple[str, str]]:
        """Devices, epsilon and validation, where they are known, each with a style."""
        if self._last is None:
            return [(f"  {self._population:,} devices", "dim")]
        facts = [(f"  {self._last.participants:,} devices", "dim")]
        if self._last.epsilon:
            facts.append((f"  {spent(self._last.epsilon, self._target)}", "magenta"))
        if self._latest is not None and self._best is not None:
            best, number = self._best
            facts.append((f"  {self._metric} {self._latest:.4f}", "cyan"))
            since = "" if self._first == 1 else f" since round {self._first}"
            facts.append((f" (best{since} {best:.4f}, round {number})", "dim"))
        return facts

    def __rich__(self) -> RenderableType:
        left = self._left()
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._rounds, completed=self._done, width=36, complete_style="cyan")
        times = f"{clock(self.elapsed)}, {'--:--' if left is None else clock(left)} left"
        head.add_row(self._spinner, Text(self._text), bar, f"{self._done}/{self._rounds}", Text(times, style="dim"))
        return Group(head, Text.assemble(" ", *self._facts()))


def spent(epsilon: Mapping[str, Any], target: float | None) -> str:
    """Epsilon spent by unit: ``epsilon 3.14 (user) of 8``."""
    goal = "" if target is None else f" of {target:g}"
    return "epsilon " + ", ".join(f"{value:.2f} ({unit})" for unit, value in epsilon.items()) + goal


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
