"""Judge the served policy of a run on a log that another policy wrote: estimates, intervals, support."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..data.bandit_log import BanditLog, read_bandit_log
from ..data.dataset import Dataset
from ..data.fetching import Progress, to_stderr
from ..data.open_bandit import find_log
from . import items as single
from . import slates as lists
from .items import Floats, Terms
from .measured import measure_impressions, measure_slates
from .report import OpeReport, OpeSettings, with_intervals
from .reward_model import RewardModel, fit_reward_model
from .support import Support, check_support, effective_sample_size
from .target import Contexts, catalogue_rows, contexts_of, probabilities

if TYPE_CHECKING:
    from ..run import Run
    from ..serving import Served

Ints = NDArray[np.int64]


def off_policy_evaluation(
    run: Run,
    log: str | Path,
    *,
    settings: OpeSettings | None = None,
    mapping: Mapping[str, str | None] | None = None,
    dataset: Dataset | None = None,
    progress: Progress = to_stderr,
) -> OpeReport:
    """Estimate what the served policy of a run would have earned on a log.

    Args:
        run: a finished run.
        log: a file (see ``read_bandit_log``), or ``open-bandit/random-all`` and the like.
        settings: see :class:`OpeSettings`; the seed defaults to the run's.
        mapping: which column has which role, where that can't be guessed.
        dataset: the run's data, unfiltered, in place of the one that its configuration names.
        progress: is told what fetching a registered log does.

    Raises:
        DataError: the log can't be read, or holds no item of the run's catalogue.
        PolicyError: the policy scores NaN.
    """
    settings = settings or OpeSettings(seed=run.config.seed)
    read = read_bandit_log(find_log(log, progress=progress), mapping=mapping)
    return evaluate_log(run.served(dataset), read, settings)


def evaluate_log(served: Served, log: BanditLog, settings: OpeSettings) -> OpeReport:
    """The same on a log in memory; see :func:`off_policy_evaluation`."""
    dataset = served.world.dataset
    items, contexts = catalogue_rows(log, dataset), contexts_of(log, dataset)
    clusters = _clusters(log)
    features = served.world.policy.features.numpy().astype(np.float64)
    model = fit_reward_model(items, log.positions, log.rewards, clusters, features, seed=settings.seed)
    judge = _judge_impressions if log.slates is None else _judge_slates
    judged = judge(served, log, items, contexts, model, clusters, settings)
    return OpeReport(
        log=log.name,
        unit=judged.unit,
        rows=len(judged.clusters),
        clusters=int(judged.clusters.max()) + 1,
        rewarded=judged.rewarded,
        states=_states(log, contexts),
        estimates=with_intervals(judged.terms, judged.clusters, settings),
        support=judged.support,
        warnings=(*_about_the_log(log, dataset, items, contexts, settings.keep_seen), *judged.support.warnings),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """Estimates before their intervals: name -> (terms, effective sample size)."""

    unit: str
    clusters: Ints
    rewarded: int
    terms: dict[str, tuple[Terms, float]]
    support: Support


def _judge_impressions(
    served: Served,
    log: BanditLog,
    items: Ints,
    contexts: Contexts,
    model: RewardModel,
    clusters: Ints,
    settings: OpeSettings,
) -> _Judged:
    states = probabilities(
        served,
        contexts,
        temperature=settings.temperature,
        keep_seen=settings.keep_seen,
        places=2 * model.table.shape[1],
    )
    found = measure_impressions(states, contexts.of_row, items, log.positions, model)
    weights = single.importance_weights(found.target, log.propensities)
    modelled = (weights, log.rewards, found.predicted, found.expected)
    threshold = single.switch_threshold(*modelled) if settings.threshold is None else settings.threshold
    size = effective_sample_size(weights)
    kept = effective_sample_size(np.where(weights <= threshold, weights, 0.0))
    terms = {
        "logged": (single.mean_of(log.rewards), float(len(log))),
        "IPS": (single.ips(weights, log.rewards), size),
        "SNIPS": (single.snips(weights, log.rewards), size),
        "DM": (single.dm(found.expected), float(len(log))),
        "DR": (single.dr(*modelled), size),
        f"Switch-DR (w <= {threshold:.3g})": (single.switch_dr(*modelled, threshold), kept),
    }
    support = check_support(weights, clusters, found.missing, "impression")
    return _Judged(
        unit="impression",
        clusters=clusters,
        rewarded=int(np.count_nonzero(log.rewards)),
        terms=terms,
        support=support,
    )


def _judge_slates(
    served: Served,
    log: BanditLog,
    items: Ints,
    contexts: Contexts,
    model: RewardModel,
    clusters: Ints,
    settings: OpeSettings,
) -> _Judged:
    grid = slate_grid(log)
    states = probabilities(
        served, contexts, temperature=settings.temperature, keep_seen=settings.keep_seen, places=2 * grid.shape[1]
    )
    found = measure_slates(states, contexts.of_row, items, grid, model, marginals=log.marginals is not None)
    ratios, rewards = found.target / _at(log.propensities, grid, 1.0), _at(log.rewards, grid, 0.0)
    whole = ratios.prod(axis=1)
    size = min(effective_sample_size(column) for column in np.cumprod(ratios, axis=1).T)
    terms = {
        "logged": (single.mean_of(rewards.sum(axis=1)), float(len(grid))),
        "IPS (whole slate)": (lists.slate_ips(ratios, rewards), effective_sample_size(whole)),
        "RIPS": (lists.reward_interaction_ips(ratios, rewards), size),
        "SNRIPS": (lists.reward_interaction_snips(ratios, rewards), size),
        "Cascade-DR": (lists.cascade_dr(ratios, rewards, found.predicted, found.expected), size),
    }
    if found.marginal is not None and log.marginals is not None:
        alone = found.marginal / _at(log.marginals, grid, 1.0)
        least = min(effective_sample_size(column) for column in alone.T)
        terms["IIPS"] = (lists.independent_ips(alone, rewards), least)
    own = _renumbered(clusters[grid[:, 0]])
    return _Judged(
        unit="slate",
        clusters=own,
        rewarded=int(np.count_nonzero(rewards.any(axis=1))),
        terms=terms,
        support=check_support(whole, own, found.missing, "slate"),
    )


def slate_grid(log: BanditLog) -> Ints:
    """Row of the log at every slot of every slate, -1 where a slate is shorter, int64 ``[slates, slots]``."""
    slates = _renumbered(np.arange(len(log)) if log.slates is None else log.slates)
    grid = np.full((int(slates.max()) + 1, int(log.positions.max()) + 1), -1, dtype=np.int64)
    grid[slates, log.positions] = np.arange(len(log))
    return grid


def _at(values: Floats, grid: Ints, otherwise: float) -> Floats:
    return np.where(grid >= 0, values[np.maximum(grid, 0)], otherwise)


def _clusters(log: BanditLog) -> Ints:
    """What is independent of each other: users, else slates, else rows; numbered from 0, ``[rows]``."""
    together = log.users if log.users is not None else log.slates
    return np.arange(len(log)) if together is None else _renumbered(together)


def _renumbered(numbers: Ints) -> Ints:
    return np.unique(numbers, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _states(log: BanditLog, contexts: Contexts) -> str:
    if log.users is None:
        return "the initialization: the log names no users"
    when = "before the time of each row" if contexts.timed else "in the run's data"
    return f"adapted to what each user did {when}"


def _about_the_log(log: BanditLog, dataset: Dataset, items: Ints, contexts: Contexts, keep_seen: bool) -> list[str]:
    said = []
    outside = float((items < 0).mean())
    if outside:
        said.append(f"{outside:.1%} of the rows show items that {dataset.name} lacks: the policy never shows them")
    devices = contexts.devices[contexts.of_row]
    strangers = float((devices < 0).mean()) if log.users is not None else 0.0
    if strangers:
        said.append(f"{strangers:.1%} of the rows are of users that {dataset.name} lacks: they get the initialization")
    reachable = contexts.timed or keep_seen  # else everything of the data is out of the policy's reach
    learnt = _learnt_from(log, dataset, items, devices) if reachable else 0.0
    if learnt:
        said.append(
            f"{learnt:.1%} of the rows are interactions that {dataset.name} holds, too: the policy may have learnt "
            "from them, and looks better than it is"
        )
    return said


def _learnt_from(log: BanditLog, dataset: Dataset, items: Ints, devices: Ints) -> float:
    """Share of the rows whose user, item and (where both have it) time are those of an interaction of the data."""
    theirs = [np.repeat(np.arange(dataset.devices), dataset.lengths), dataset.items.astype(np.int64)]
    ours = [devices, items]
    if log.timestamps is not None and dataset.timestamps is not None:
        theirs, ours = [*theirs, np.asarray(dataset.timestamps)], [*ours, log.timestamps]
    rows = np.unique(np.concatenate([np.stack(theirs), np.stack(ours)], axis=1), axis=1, return_inverse=True)[1]
    rows = rows.reshape(-1)
    held = np.isin(rows[dataset.interactions :], rows[: dataset.interactions])
    return float((held & (devices >= 0) & (items >= 0)).mean())
