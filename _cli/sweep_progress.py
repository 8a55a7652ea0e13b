"""Follows a sweep: a bar for all of it and a line for each cell at work in a terminal, a line a cell in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .progress import clock

if TYPE_CHECKING:
    from ..simulation.sweep.spec import Cell

_JUDGING = 0.12
"""Share of a cell that is left when its last round is over."""


@dataclass
class _Cell:
    """A cell at work."""

    label: str
    since: float
    done: int = 0
    rounds: int = 0
    first: int = 0
    rounds_since: float = 0.0
    stage: str = "starting"

    def left(self, now: float) -> float | None:
        """Seconds that the rest of the rounds will take; none before two of them."""
        held = self.done - self.first
        return None if held < 2 else (now - self.rounds_since) / held * (self.rounds - self.done)

    @property
    def share(self) -> float:
        """How much of it is done."""
        return self.done / self.rounds * (1 - _JUDGING) if self.rounds else 0.0


class SweepProgress:
    """A :class:`fedrec.simulation.sweep.SweepListener` for people."""

    def __init__(self, console: Console, *, live: bool) -> None:
        """Show it on ``console``; ``live`` redraws in place."""
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if live else None
        self._cells: Sequence[Cell] = ()
        self._weights: list[float] = []
        self._at_work: dict[int, _Cell] = {}
        self._over: set[int] = set()
        self._before: set[int] = set()
        self._failed = 0
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()

    def stage(self, text: str) -> None:
        """Something begins that is no cell."""
        if self._live is not None:
            self._live.update(Text(text, style="dim"))

    def planned(self, cells: Sequence[Cell], finished: Sequence[int], workers: int) -> None:
        """What there is to do."""
        from ..simulation.sweep.run import weight

        self._cells, self._before, self._began = cells, set(finished), time.perf_counter()
        self._weights = [weight(cell.config) for cell in cells]
        rest = f", {len(finished)} are there already" if finished else ""
        self._print(f"{len(cells)} cells{rest}; {workers} at a time")

    def event(self, number: int, event: Mapping[str, Any]) -> None:
        """Something happened to a cell."""
        now, kind = time.perf_counter(), event["kind"]
        if kind == "taken":
            self._at_work[number] = _Cell(self._cells[number].label, now)
        elif kind in ("done", "failed", "lost"):
            self._end(number, event, now)
        elif number in self._at_work:
            self._follow(self._at_work[number], event, now)
        self.wait()

    def wait(self) -> None:
        """A moment passed: draw anew."""
        if self._live is not None:
            self._live.update(self._display())

    def _follow(self, cell: _Cell, event: Mapping[str, Any], now: float) -> None:
        if event["kind"] == "started":
            cell.rounds, cell.rounds_since, cell.done, cell.first = event["rounds"], now, 0, 0
            cell.stage = event["text"]
        elif event["kind"] == "round":
            if cell.done == 0 and event["round"] > 1:  # it goes on where an earlier process stopped
                cell.first = event["round"]
            cell.done = event["round"]
        else:
            cell.stage = event["text"].partition(":")[0]

    def _end(self, number: int, event: Mapping[str, Any], now: float) -> None:
        cell = self._at_work.pop(number)
        if event["kind"] == "lost":
            self._print(f"{cell.label}: its worker died ({event['how']}); another goes on with it", "yellow")
            return
        self._over.add(number)
        self._failed += event["kind"] == "failed"
        count = f"{len(self._over)}/{len(self._cells) - len(self._before)}"
        left = self._left(now)
        ahead = f", {clock(left)} left" if left else ""
        if event["kind"] == "failed":
            self._print(f"✗ {count}  {cell.label}: {event['error']}", "red")
        else:
            self._print(f"✓ {count}  {cell.label}  {clock(now - cell.since)}{ahead}")

    def _left(self, now: float) -> float | None:
        """Seconds to the end, at the pace of this call, by the weights of what is done and what is not."""
        whole = sum(one for number, one in enumerate(self._weights) if number not in self._before)
        done = sum(self._weights[number] for number in self._over)
        done += sum(self._weights[number] * cell.share for number, cell in self._at_work.items())
        return None if done <= 0 else (now - self._began) / done * (whole - done)

    def _display(self) -> RenderableType:
        now = time.perf_counter()
        left = self._left(now)
        todo = len(self._cells) - len(self._before)
        head = Table.grid(padding=(0, 1))
        failed = f", {self._failed} failed" if self._failed else ""
        times = f"{clock(now - self._began)}, {'--:--' if left is None else clock(left)} left"
        bar = ProgressBar(total=max(todo, 1), completed=len(self._over), width=36, complete_style="cyan")
        head.add_row(Text("sweep", "bold"), bar, f"{len(self._over)}/{todo} cells{failed}", Text(times, "dim"))
        lines = Table.grid(padding=(0, 2))
        for cell in self._at_work.values():
            ahead = cell.left(now)
            rest = "" if ahead is None else f", {clock(ahead)} left"
            state = f"round {cell.done}/{cell.rounds}" if 0 < cell.done < cell.rounds else cell.stage
            lines.add_row(Text(f" {cell.label}"), Text(state, "cyan"), Text(f"{clock(now - cell.since)}{rest}", "dim"))
        return Group(head, lines)

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)
