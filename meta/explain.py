"""Why an item gets its score: the terms that add up to it, and what each history entry and content feature is worth.

Three views of one number, all in units of the score (log-odds between two items), all for fixed parameters:

- **terms**: the policy's own summands for the item, each times the temperature factor. They add up to the score.
- **history**: occlusion (Zeiler & Fergus 2014): the score minus the score with the entry taken out of the history,
  older entries moving up. Exact by definition for every state encoder; effects of several entries do not add up, not
  even for the encoders that are linear in item embeddings, as recency weights are normalised.
- **features**: what a content feature of the item adds through the taste vector and through the content kernels whose
  columns are features. An exact share of those terms; the rest of the score has no share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PolicyError
from .interactions import FeatureGroup
from .policy import Parameters, Policy, State


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One score, taken apart.

    Attributes:
        score: the policy's score of the item, an unnormalised log-probability.
        probability: softmax of the scores over the candidates, at the item.
        terms: contribution of each term, adding up to ``score``: ``bias`` (gain included), ``taste``,
            ``affinity.<kernel>``, ``latent``, ``user`` (device features), ``state`` (encoded history) and
            ``personal``; only those that the policy has.
        temperature: the factor that every term holds already; 1 without such a weight.
        history: (column of ``state.history``, catalogue row, effect) of every entry, what raises the score most first.
        features: (column of ``policy.features``, effect) of the item's features, largest magnitude first.
    """

    score: float
    probability: float
    terms: dict[str, float]
    temperature: float
    history: tuple[tuple[int, int, float], ...]
    features: tuple[tuple[int, float], ...]


def explain(
    policy: Policy,
    parameters: Parameters,
    state: State,
    item: int,
    *,
    groups: Sequence[FeatureGroup] = (),
    candidates: Tensor | None = None,
    top: int | None = None,
) -> Explanation:
    """Take the score of ``item`` in ``state`` apart.

    Args:
        policy: the policy.
        parameters: every parameter of it, personal ones included, finite.
        state: one state: fields ``[1, length]``, ``[1, length]``, ``[user_features]``.
        item: catalogue row.
        groups: the catalogue's feature groups; without them content kernels give features no share.
        candidates: items among which ``probability`` is meant, bool ``[items]``; none means the whole catalogue.
        top: keep so many features; none keeps all that the item has.

    Raises:
        PolicyError: NaN or infinite parameters or scores, more than one state, or an item that is no candidate.
    """
    candidates = torch.ones(policy.items, dtype=torch.bool) if candidates is None else candidates
    _check(policy, parameters, state, item, candidates)
    with torch.no_grad():
        scores = policy.scores(parameters, state)[0]
        if not bool(torch.isfinite(scores).all()):
            raise PolicyError("expected finite scores, got NaN or infinity; lower the learning rates")
        terms = score_terms(policy, parameters, state, item)
        features = _feature_effects(policy, parameters, state, item, groups)
        history = _history_effects(policy, parameters, state, item)
        chance = torch.softmax(scores.masked_fill(~candidates, -torch.inf), dim=0)[item]
        factor = _temperature(parameters)
    return Explanation(
        score=float(scores[item]),
        probability=float(chance),
        terms={name: float(value[0]) for name, value in terms.items()},
        temperature=float(factor),
        history=history,
        features=features[:top],
    )


def score_terms(policy: Policy, parameters: Parameters, state: State, item: int) -> dict[str, Tensor]:
    """Every term of the score of ``item``, ``[batch]`` each.

    Their sum is ``policy.scores(parameters, state)[:, item]``, at the price of one item instead of the whole catalogue.
    """
    settings, batch = policy.settings, state.history.shape[0]
    terms: dict[str, Tensor] = {}
    if settings.bias:
        terms["bias"] = policy._gain(parameters["gain"], state) * parameters["bias"][item]
    if settings.content:
        terms["taste"] = (policy.features[item] @ parameters["taste"]).expand(batch)
    if settings.affinity:
        shares = _kernel_shares(policy, parameters, state, item)
        for number, name in enumerate(policy.kernel_names):
            terms[f"affinity.{name}"] = shares[:, policy.kernel_of == number].sum(-1)
    if policy.embeds:
        terms |= _embedding_terms(policy, parameters, state, item)
    factor = _temperature(parameters)
    return {name: value * factor for name, value in terms.items()}


def _embedding_terms(policy: Policy, parameters: Parameters, state: State, item: int) -> dict[str, Tensor]:
    """``<E(a), part>`` for the parts of the state vector, found by leaving the other parts out."""
    batch, encoder = state.history.shape[0], policy.settings.state
    own = policy.embed(parameters, torch.tensor(item))
    terms = {"latent": (parameters["latent"] @ own).expand(batch)}
    absent = {"latent": torch.zeros_like(parameters["latent"])}
    if "user" in parameters:
        terms["user"] = (state.user @ parameters["user"] @ own).expand(batch)
        absent["user"] = torch.zeros_like(parameters["user"])
    if encoder != "none":
        encoded = policy.encode_state({**parameters, **absent}, state) @ own
        terms["personal" if encoder == "personal" else "state"] = encoded.expand(batch)
    return terms


def _kernel_shares(policy: Policy, parameters: Parameters, state: State, item: int) -> Tensor:
    """Contribution of every kernel column to the item's affinity, before the temperature, ``[batch, columns]``."""
    return policy._affinity(parameters, state) * policy.kernel_table(parameters)[item]


def _temperature(parameters: Parameters) -> Tensor:
    """The factor on the whole score, ``[]``."""
    return torch.exp(parameters["temperature"])[0] if "temperature" in parameters else torch.ones(())


def _history_effects(
    policy: Policy, parameters: Parameters, state: State, item: int
) -> tuple[tuple[int, int, float], ...]:
    """Occlusion of every history entry in one batch, strongest support first (the more recent of two equal ones)."""
    columns = torch.nonzero(state.history[0] >= 0).flatten().tolist()
    if not columns:
        return ()
    states = _with_and_without(state, columns)
    scores = sum(score_terms(policy, parameters, states, item).values(), torch.zeros(len(columns) + 1))
    effects = (scores[0] - scores[1:]).tolist()
    entries = zip(columns, state.history[0, columns].tolist(), effects, strict=True)
    return tuple(sorted(entries, key=lambda entry: (-entry[2], -entry[0])))


def without_entry(state: State, column: int) -> State:
    """``state`` as if the entry in ``column`` had never been logged: older ones move up, a pad comes in on the left."""

    def shifted(values: Tensor, padding: int) -> Tensor:
        pad = torch.full_like(values[:, :1], padding)
        return torch.cat([pad, values[:, :column], values[:, column + 1 :]], dim=1)

    return State(shifted(state.history, -1), shifted(state.levels, 0), state.user)


def _with_and_without(state: State, columns: Sequence[int]) -> State:
    """The state, then the state without each of ``columns``: histories ``[1 + columns, length]``."""
    states = [state, *(without_entry(state, column) for column in columns)]
    return State(torch.cat([s.history for s in states]), torch.cat([s.levels for s in states]), state.user)


def _feature_effects(
    policy: Policy, parameters: Parameters, state: State, item: int, groups: Sequence[FeatureGroup]
) -> tuple[tuple[int, float], ...]:
    """Share of each of the item's features in taste and single-group kernels, largest magnitude first."""
    effects = torch.zeros(policy.features.shape[1])
    if policy.settings.content:
        effects = effects + policy.features[item] * parameters["taste"]
    if policy.settings.affinity:
        shares = _kernel_shares(policy, parameters, state, item)[0]
        for group in groups:
            columns = _columns_of(policy, group)
            effects[group.start : group.stop] += shares[columns] if columns is not None else 0.0
    effects = effects * _temperature(parameters)
    own = torch.nonzero(policy.features[item]).flatten().tolist()
    found = [(column, float(effects[column])) for column in own]
    return tuple(sorted(found, key=lambda pair: (-abs(pair[1]), pair[0])))


def _columns_of(policy: Policy, group: FeatureGroup) -> Tensor | None:
    """The kernel columns that are the features of ``group``, in order; none where it has no such kernel."""
    if group.name not in policy.kernel_names:
        return None
    columns = torch.nonzero(policy.kernel_of == policy.kernel_names.index(group.name)).flatten()
    return columns if len(columns) == group.stop - group.start else None


def _check(policy: Policy, parameters: Parameters, state: State, item: int, candidates: Tensor) -> None:
    if state.history.shape[:1] != (1,) or state.levels.shape != state.history.shape:
        raise PolicyError(f"expected one state, history [1, length], got {tuple(state.history.shape)}; index the batch")
    if not 0 <= item < policy.items:
        raise PolicyError(f"expected an item row in [0, {policy.items}), got {item}; look it up in the catalogue")
    if candidates.shape != (policy.items,) or candidates.dtype != torch.bool:
        raise PolicyError(
            f"expected candidates as bool [{policy.items}], got {candidates.dtype} {tuple(candidates.shape)}"
        )
    if not bool(candidates[item]):
        raise PolicyError(f"expected an item among the candidates, got row {item} outside; add it or leave them out")
    for name, value in parameters.items():
        if not bool(torch.isfinite(value).all()):
            raise PolicyError(f"expected finite parameters, got NaN or infinity in {name}; lower the learning rates")
