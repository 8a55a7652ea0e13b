"""Recommendations for one user of a finished run, and why: what a device would show, given everything in its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.bar import Bar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .._streams import torch_stream
from .._validate import at_least
from ..errors import PolicyError
from ..meta.acting import Exploration, act
from ..meta.explain import Explanation
from ..meta.explain import explain as take_apart
from ..meta.interactions import Catalogue
from ..meta.policy import Named, State
from .data.dataset import Dataset
from .run import device_index
from .serving import Served
from .world import load_dataset

if TYPE_CHECKING:
    from .run import Run

REASONS = 3
"""History entries and features named for a recommendation."""
_LABELS = {"bias": "popularity", "taste": "taste", "latent": "latent", "user": "user features", "state": "history"}
_MORE, _LESS = "cyan", "magenta"
_BAR = 16  # cells of a bar


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One item of a ranking; ``terms`` and what follows are empty unless an explanation was asked for.

    Attributes:
        rank: place, from 1.
        item_id: the data set's own id.
        title: what to show.
        score: unnormalised log-probability.
        probability: softmax of the scores over everything the user has not met.
        propensity: probability of the item in its place given those above it, where the list was drawn.
        terms: contributions that add up to ``score``, see :class:`fedrec.meta.explain.Explanation`.
        because: (title, effect) of the history entries that raise the score most, strongest first.
        features: (name, effect) of the item's content features with the largest effects, either way.
    """

    rank: int
    item_id: str
    title: str
    score: float
    probability: float
    propensity: float | None = None
    terms: Mapping[str, float] = field(default_factory=dict)
    because: tuple[tuple[str, float], ...] = ()
    features: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold: tuples as lists."""
        values = asdict(self)
        return values | {name: [list(pair) for pair in values[name]] for name in ("because", "features")}


def recommend(
    run: Run,
    user: str,
    k: int = 10,
    *,
    explain: bool = False,
    how: Exploration | None = None,
    seed: int = 0,
    dataset: Dataset | None = None,
) -> list[Recommendation]:
    """Rank what ``user`` has not met, or draw a slate from it, with the policy adapted on the whole log of the device.

    Nothing is held out here: test and validation interactions count as history, so this is no evaluation.

    Args:
        run: a finished run.
        user: the data set's own id of the user.
        k: length of the list; shorter where fewer unseen items are left.
        explain: fill ``terms``, ``because`` and ``features``.
        how: draw a slate of k items this way (``meta.acting``; its own size does not matter); none ranks.
        seed: of that draw; the same seed draws the same slate for the same user.
        dataset: the run's data, unfiltered, in place of the one that its configuration names.

    Raises:
        ValueError: k < 1.
        RunError: an unknown user.
        PolicyError: the policy scores NaN.
    """
    at_least("k", k, 1)
    dataset = load_dataset(run.config) if dataset is None else dataset
    device = device_index(dataset, user)
    seat = _Seat.of(run.served(dataset), device)
    unseen = torch.ones(dataset.items_count, dtype=torch.bool)
    unseen[dataset.log(device).items] = False
    scores = seat.scores()
    chances = torch.softmax(scores.masked_fill(~unseen, -torch.inf), dim=0)
    size = min(k, int(unseen.sum()))
    if how is None:
        items = torch.sort(scores.masked_fill(~unseen, -torch.inf), descending=True, stable=True).indices[:size]
        drawn = None
    else:
        items, drawn = _slate(
            seat, scores, unseen, replace(how, size=max(1, size)), torch_stream(seed, "slate", device)
        )
    found = []
    for place, item in enumerate(items[:size].tolist()):
        plain = Recommendation(
            rank=place + 1,
            item_id=str(dataset.catalogue.item_ids[item]),
            title=dataset.catalogue.title(item),
            score=float(scores[item]),
            probability=float(chances[item]),
            propensity=None if drawn is None else float(drawn[place]),
        )
        found.append(_explained(plain, seat.explain(item, unseen), dataset.catalogue) if explain else plain)
    return found


def _slate(
    seat: _Seat, scores: Tensor, allowed: Tensor, how: Exploration, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Items of a drawn slate and their conditional propensities, ``[size]`` each."""
    slate = act(scores[None], allowed[None], how, generator, seat.served.world.policy.features)
    return slate.items[0], slate.propensities[0]


@dataclass(frozen=True, kw_only=True)
class _Seat:
    """One device after its local adaptation: its policy's parameters and its state."""

    served: Served
    parameters: Named
    state: State

    @classmethod
    def of(cls, served: Served, device: int) -> _Seat:
        world = served.world
        devices, stops = np.array([device]), world.dataset.offsets[[device + 1]]
        own = {name: value[0].detach() for name, value in served.adapted(devices, stops).items()}
        batch = world.states(devices, stops)
        state = State(batch.history[0], batch.levels[0], batch.user[0])
        return cls(served=served, parameters={**served.phi, **own}, state=state)

    def scores(self) -> Tensor:
        with torch.no_grad():
            scores = self.served.world.policy.scores(self.parameters, self.state)[0]
        if not bool(torch.isfinite(scores).all()):
            raise PolicyError("expected finite scores, got NaN or infinity; lower evaluation.serve_lr")
        return scores

    def explain(self, item: int, candidates: Tensor) -> Explanation:
        world = self.served.world
        groups = world.dataset.catalogue.groups
        return take_apart(world.policy, self.parameters, self.state, item, groups=groups, candidates=candidates)


def _explained(plain: Recommendation, found: Explanation, catalogue: Catalogue) -> Recommendation:
    because = [(catalogue.title(item), effect) for _, item, effect in found.history if effect > 0]
    return replace(
        plain,
        terms=found.terms,
        because=tuple(because[:REASONS]),
        features=tuple((catalogue.feature_names[column], effect) for column, effect in found.features[:REASONS]),
    )


def recommendation_table(recommendations: Sequence[Recommendation]) -> Table:
    """The list as a table for a terminal; explained ones with their terms as bars from a common zero."""
    if any(one.terms for one in recommendations):
        return _explained_table(recommendations)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("item")
    drawn = any(one.propensity is not None for one in recommendations)
    for name in ("score", "probability", *["propensity"] * drawn):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    likeliest = max((one.probability for one in recommendations), default=1.0) or 1.0
    for one in recommendations:
        bar = Bar(likeliest, 0, one.probability, width=_BAR, color=_MORE)
        numbers = [f"{one.score:.2f}", f"{one.probability:.2%}"]
        numbers += [f"{one.propensity:.2%}"] if one.propensity is not None else []
        table.add_row(str(one.rank), Text(one.title), *numbers, bar)
    return table


def _explained_table(recommendations: Sequence[Recommendation]) -> Table:
    """Reasons stand under the title, terms to its right: 80 columns are enough."""
    table = Table(box=None, padding=(0, 2, 1, 0), header_style="bold", pad_edge=False)
    table.add_column("", justify="right", style="dim")
    table.add_column("item and strongest reasons", min_width=24)
    table.add_column("score, term by term", no_wrap=True)
    values = [value for one in recommendations for value in one.terms.values()]
    span = min(0.0, *values), max(0.0, *values)
    for one in recommendations:
        table.add_row(str(one.rank), _reasons(one), _terms(one.terms, span))
    return table


def term_label(name: str) -> str:
    """A term's name for people: ``affinity.genre`` is ``alike: genre``."""
    _, is_kernel, kernel = name.partition(".")
    return f"alike: {kernel}" if is_kernel else _LABELS.get(name, name)


def _terms(terms: Mapping[str, float], span: tuple[float, float]) -> Table:
    """One line a term: its name, its value, a bar from zero; all bars of a table have the axis ``span``."""
    low, high = span
    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column()
    for name, value in terms.items():
        start, end = sorted((0.0, value))
        bar = Bar((high - low) or 1.0, start - low, end - low, width=_BAR, color=_colour(value))
        grid.add_row(Text(term_label(name)), _effect(value), bar)
    return grid


def _reasons(one: Recommendation) -> Text:
    """Title and score, then history entries, then features (in italics), each with its effect."""
    lines = [
        Text(one.title, style="bold"),
        Text(f"score {one.score:.2f}, probability {one.probability:.2%}{_drawn_with(one)}", style="dim"),
    ]
    lines += [Text.assemble(_effect(effect), "  ", title) for title, effect in one.because]
    for name, effect in one.features:
        lines.append(Text.assemble(_effect(effect), "  ", (name.replace("=", ": ", 1), "italic")))
    return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)


def _drawn_with(one: Recommendation) -> str:
    return "" if one.propensity is None else f", propensity {one.propensity:.2%}"


def _effect(value: float) -> Text:
    return Text(f"{value:+.2f}", style=_colour(value))


def _colour(value: float) -> str:
    return _MORE if value >= 0 else _LESS
