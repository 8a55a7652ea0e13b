"""What an initialization brings to another catalogue: the parameters that content features give a meaning there, too.

Rows and columns go by *name*: ``topic=Sport`` is ``topic=Sport`` wherever it stands. What belongs to the items
themselves (``ids``, ``bias``, ``pairs``) stays behind, as the other catalogue has other items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PolicyError
from .interactions import Catalogue
from .pairs import NAME as PAIRS
from .policy import RATE, Named, Policy

_OF_ITEMS = ("ids", "bias", PAIRS)
_BY_FEATURE = ("taste", "content", "affinity")


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """An initialization and what gives its rows their names.

    Attributes:
        policy: the policy it belongs to.
        phi: shared parameters by name.
        catalogue: the items, with the names of their features.
        user_names: names of the device features.
    """

    policy: Policy
    phi: Named
    catalogue: Catalogue
    user_names: Sequence[str] = ()

    def labels(self, name: str) -> tuple[int, Sequence[str]] | None:
        """The dimension of a parameter that has names, and those names; none where all of it is one thing."""
        named: Mapping[str, tuple[int, Sequence[str]]] = {
            "taste": (0, self.catalogue.feature_names),
            "content": (0, self.catalogue.feature_names),
            "affinity": (1, self.policy.kernel_names),
            "user": (0, self.user_names),
        }
        return named.get(name.removeprefix(RATE))


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """The target's initialization after a transfer.

    Attributes:
        phi: all shared parameters of the target.
        taken: parameter -> how many of its named rows or columns (1 where it has none) are the source's.
        of: parameter -> how many there are.
    """

    phi: Named
    taken: dict[str, int]
    of: dict[str, int]


def transfer(source: Side, target: Side) -> Transfer:
    """Put into the target's initialization what the source's can tell about it.

    - ``taste``, ``content``, ``affinity``, ``user``: the rows (for ``affinity`` the columns) of equal names.
    - ``latent``, ``state.*``, ``user`` and ``content`` live in the space that ``content`` spans: they come together or
      not at all, and only where both embed content in as many dimensions; ``state.*`` only between equal encoders.
    - ``gain``, ``temperature`` and learned rates (``rate.*``): with the parameter they belong to, where shapes agree.
    - everything else is the target's own.

    A number such as ``price`` is standardised within its own catalogue, so an equal name means an equal standing.

    Returns:
        New tensors; neither side is changed.

    Raises:
        PolicyError: no parameter over content features has a name in common.
    """
    phi, taken, of = {name: value.clone() for name, value in target.phi.items()}, {}, {}
    space = _same_space(source, target)
    for name, value in phi.items():
        if name not in source.phi or not _portable(name, source, target, space):
            continue
        there, here, total = _common(name, source, target)
        if not here.numel() or not _fits(name, source, target):
            continue
        axis = (target.labels(name) or (0, ()))[0]
        rows = source.phi[name].to(value.dtype)
        phi[name] = value.index_copy(axis, here, rows.index_select(axis, there)) if total else rows.clone()
        taken[name], of[name] = (len(here), total) if total else (1, 1)
    if not any(name in taken for name in _BY_FEATURE):
        raise PolicyError(
            f"expected content features in common with the run to start from, got {_some(source)} there and "
            f"{_some(target)} here, of which no parameter of both policies knows any; start from a run that shares some"
        )
    return Transfer(phi=phi, taken=taken, of=of)


def _same_space(source: Side, target: Side) -> bool:
    """Whether the item embeddings of both have a basis in common."""
    both = all("content" in side.phi for side in (source, target))
    common = set(source.catalogue.feature_names) & set(target.catalogue.feature_names)
    return both and bool(common) and source.policy.settings.dim == target.policy.settings.dim


def _portable(name: str, source: Side, target: Side, space: bool) -> bool:
    plain = name.removeprefix(RATE)
    if plain in _OF_ITEMS:
        return False
    if plain.startswith("state.") and source.policy.settings.state != target.policy.settings.state:
        return False
    return space or plain not in target.policy.embedding_names


def _common(name: str, source: Side, target: Side) -> tuple[Tensor, Tensor, int]:
    """Places of the common names in source and target, and how many names the target has; 0 where there are none."""
    theirs, ours = source.labels(name), target.labels(name)
    if theirs is None or ours is None:
        return torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 0
    place = {label: number for number, label in enumerate(theirs[1])}
    pairs = [(place[label], number) for number, label in enumerate(ours[1]) if label in place]
    there, here = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return there, here, len(ours[1])


def _fits(name: str, source: Side, target: Side) -> bool:
    """Whether the shapes agree but for the dimension that has names."""
    shapes = [list(side.phi[name].shape) for side in (source, target)]
    labelled = target.labels(name)
    for shape in shapes:
        if labelled is not None:
            shape[labelled[0]] = 0
    return shapes[0] == shapes[1]


def _some(side: Side) -> str:
    names = [group.name for group in side.catalogue.groups] or list(side.catalogue.feature_names)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none"
