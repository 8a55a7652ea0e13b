"""The policy ``pi(a | s)``: a softmax over the catalogue of item encoder x state encoder, and its parameters' roles.

    score(a | s) = gain(s) bias[a] + content(a) . taste + affinity(s, a) + <E(a), u(s) + latent + user features @ user>
    E(a)         = content(a) @ content + ids[a]
    affinity     = sum over recency scales and kernels of weight * kernel(history, a)

Every term but one is optional. A policy is a frozen description plus pure functions over named tensors: parameters
travel separately, so that one device, a batch of devices and one example's gradient all run the same lines.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..config import PolicyConfig
from . import state as encoders
from ._matmul import rows_times
from ._policy_check import check
from .affinity import kernel_features, level_features, released_kernels
from .interactions import Catalogue
from .pairs import NAME as PAIRS

Named = dict[str, Tensor]
Parameters = Mapping[str, Tensor]
Speed = Literal["fast", "slow", "frozen"]
Scope = Literal["shared", "personal"]

RATE = "rate."
"""Before the name of a fast weight: the log of the learned rate of every coordinate of it (``meta.inner_rates``)."""
LEVELS = 5
"""Levels into which rewards of the history are binned for the reward-aware history."""


class State(NamedTuple):
    """What the policy looks at.

    Attributes:
        history: catalogue rows, oldest first, -1 pads on the left, int64 ``[batch, length]``.
        levels: reward level of each history entry, int64 ``[batch, length]`` in ``[0, LEVELS)``.
        user: the device's features, float32 ``[user_features]``.
    """

    history: Tensor
    levels: Tensor
    user: Tensor


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """Name, shape and role of one parameter tensor.

    ``fast`` ones take K local steps, ``slow`` ones a single one where the fast ones arrived, ``frozen`` ones none (a
    warm start may set them); ``personal`` ones never leave the device, ``shared`` ones do, as updates.
    """

    name: str
    shape: tuple[int, ...]
    speed: Speed
    scope: Scope


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """A policy over a fixed, public catalogue.

    Attributes:
        settings: which terms there are, and which weights are fast.
        features: public content features, float32 ``[items, features]``.
        kernels: explicit features of the public content kernels, float32 ``[items, columns]`` (see ``meta.affinity``).
        kernel_of: the kernel of every column of :meth:`kernel_table`, int64 ``[columns]``.
        kernel_names: what the kernels compare.
        user_width: number of device features.
    """

    settings: PolicyConfig
    features: Tensor
    kernels: Tensor
    kernel_of: Tensor
    kernel_names: tuple[str, ...] = ()
    user_width: int = 0

    @classmethod
    def for_catalogue(cls, settings: PolicyConfig, catalogue: Catalogue, user_width: int = 0) -> Policy:
        """A policy over ``catalogue``.

        Raises:
            PolicyError: the settings leave no term at all, or need features that the catalogue has not.
        """
        kernels, kernel_of, names = kernel_features(catalogue, settings.affinity_place)
        for name, width in released_kernels(settings).items():
            kernel_of = torch.cat([kernel_of, torch.full((width,), len(names))])
            names = (*names, name)
        policy = cls(
            settings=settings,
            features=torch.tensor(catalogue.features, dtype=torch.float32),
            kernels=kernels,
            kernel_of=kernel_of,
            kernel_names=names,
            user_width=user_width,
        )
        check(policy)
        return policy

    def to(self, device: torch.device) -> Policy:
        """The same policy with its public tensors on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("features", "kernels", "kernel_of")}
        return replace(self, **moved)

    @property
    def items(self) -> int:
        """Catalogue size."""
        return int(self.features.shape[0])

    @property
    def embeds(self) -> bool:
        """Whether there is an item encoder ``E(a)`` at all."""
        uses = self.settings.state != "none" or "latent" in self.settings.fast or self._sees_user
        return uses and self.settings.dim > 0 and (self.settings.content_embedding or self.settings.ids)

    @property
    def encodes_history(self) -> bool:
        """Whether a state encoder reads the history."""
        return self.settings.encodes_history

    @property
    def _sees_user(self) -> bool:
        return self.settings.user_features and self.user_width > 0

    @property
    def sees_history(self) -> bool:
        """Whether the state holds other interactions of the device: decides how examples may be built."""
        return self.settings.sees_history

    @cached_property
    def specs(self) -> dict[str, ParameterSpec]:
        """Every parameter tensor by name, in sorted order."""
        settings, dim, width = self.settings, self.settings.dim, int(self.features.shape[1])
        shapes: dict[str, tuple[int, ...]] = {}
        if settings.bias:
            shapes["bias"] = (self.items,)
            shapes["gain"] = (2,)
        if settings.content:
            shapes["taste"] = (width,)
        if settings.affinity:
            shapes["affinity"] = (len(encoders.SCALES), len(self.kernel_names))
        if PAIRS in self.kernel_names:
            shapes[PAIRS] = (self.items, settings.pairs)
        if "temperature" in settings.fast:
            shapes["temperature"] = (1,)
        if self.embeds:
            shapes |= self._embedding_shapes(dim, width)
        if settings.learned_rates:
            fast = [name for name, shape in shapes.items() if self._spec(name, shape).speed == "fast"]
            shapes |= {RATE + name: shapes[name] for name in fast if name != "personal"}
        return {name: self._spec(name, shapes[name]) for name in sorted(shapes)}

    def _embedding_shapes(self, dim: int, width: int) -> dict[str, tuple[int, ...]]:
        settings = self.settings
        shapes: dict[str, tuple[int, ...]] = {"latent": (dim,)}
        if settings.ids:
            shapes["ids"] = (self.items, dim)
        if settings.content_embedding:
            shapes["content"] = (width, dim)
        if self._sees_user:
            shapes["user"] = (self.user_width, dim)
        if settings.state == "personal":
            shapes["personal"] = (dim,)
        if self.encodes_history:
            shapes |= encoders.encoder_shapes(settings.state, dim, settings.history_length)
            if settings.history_rewards:
                shapes |= {"state.reward_gain": (LEVELS,), "state.reward_shift": (LEVELS, dim)}
        return shapes

    def _stays(self, name: str) -> bool:
        """Whether adaptation leaves the parameter alone."""
        return name in (*self.settings.frozen, PAIRS) or name.startswith(RATE)

    def _spec(self, name: str, shape: tuple[int, ...]) -> ParameterSpec:
        fast = name in self.settings.fast or name == "personal"
        return ParameterSpec(
            name=name,
            shape=shape,
            speed="frozen" if self._stays(name) else "fast" if fast else "slow",
            scope="personal" if name == "personal" else "shared",
        )

    def names(self, *, speed: Speed | None = None, scope: Scope | None = None) -> tuple[str, ...]:
        """Sorted names of the parameters with that speed and scope."""
        chosen = self.specs.values()
        return tuple(s.name for s in chosen if speed in (None, s.speed) and scope in (None, s.scope))

    @cached_property
    def trained(self) -> tuple[str, ...]:
        """Sorted names of the parameters that adaptation moves."""
        return tuple(spec.name for spec in self.specs.values() if spec.speed != "frozen")

    @property
    def embedding_names(self) -> tuple[str, ...]:
        """Sorted names of the parameters that act through the item encoder."""
        return tuple(self._embedding_shapes(1, 1)) if self.embeds else ()

    @cached_property
    def released(self) -> tuple[str, ...]:
        """Sorted names of the parameters whose updates leave the device: trained and shared."""
        return tuple(spec.name for spec in self.specs.values() if spec.speed != "frozen" and spec.scope == "shared")

    def initial(self, generator: torch.Generator) -> Named:
        """A first initialization: small random embeddings, everything else neutral. Float32, CPU."""
        return {name: self._initial(spec, generator) for name, spec in self.specs.items()}

    def _initial(self, spec: ParameterSpec, generator: torch.Generator) -> Tensor:
        scale = self.settings.init_scale
        if spec.name == "state.log_scale":
            return torch.log(torch.tensor(encoders.SCALES))
        if spec.name == "state.mix":
            return torch.eye(spec.shape[1]).expand(spec.shape).clone()
        if spec.name == "gain":
            return torch.tensor([self.settings.gain_start, 0.0])
        if spec.name == "affinity":
            plain = (self.settings.affinity_init,) * spec.shape[0]
            return torch.tensor([self.settings.affinity_start.get(name, plain) for name in self.kernel_names]).T.clone()
        if spec.name in ("ids", "content", "state.position"):
            return torch.randn(spec.shape, generator=generator) * scale
        if spec.name.startswith("state.") and len(spec.shape) >= 2 and spec.name not in _NEUTRAL:
            return torch.randn(spec.shape, generator=generator) / math.sqrt(spec.shape[-2])
        return torch.zeros(spec.shape)

    def schema(self) -> str:
        """Fingerprint of names, shapes, roles and settings: two sides that agree on it can exchange updates."""
        roles = [(spec.name, spec.shape, spec.speed, spec.scope) for spec in self.specs.values()]
        start = dict(sorted(self.settings.affinity_start.items()))  # equal settings, whatever order a file gave them
        text = repr((self.settings.model_copy(update={"affinity_start": start}).model_dump_json(), roles))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def scores(self, parameters: Parameters, state: State) -> Tensor:
        """Unnormalised log-probabilities of every item, ``[batch, items]``."""
        settings = self.settings
        total = torch.zeros(state.history.shape[0], self.items)
        if settings.bias:
            total = total + self._gain(parameters["gain"], state)[:, None] * parameters["bias"]
        if settings.content:
            total = total + rows_times(parameters["taste"][None], self.features.T)
        if settings.affinity:
            total = total + rows_times(self._affinity(parameters, state), self.kernel_table(parameters).T)
        if self.embeds:
            total = total + self.against_items(parameters, self.encode_state(parameters, state))
        if "temperature" in parameters:
            total = total * torch.exp(parameters["temperature"])
        return total

    def log_policy(self, parameters: Parameters, state: State) -> Tensor:
        """``log pi(a | s)`` over the whole catalogue, ``[batch, items]``."""
        return torch.log_softmax(self.scores(parameters, state), dim=-1)

    def item_embedding(self, parameters: Parameters) -> Tensor:
        """``E(a)`` of every item, ``[items, dim]``."""
        if not self.settings.content_embedding:
            return parameters["ids"]
        projected = self.features @ parameters["content"]
        return projected + parameters["ids"] if self.settings.ids else projected

    def embed(self, parameters: Parameters, items: Tensor) -> Tensor:
        """``E(a)`` of some items, ``[*items.shape, dim]``."""
        if not self.settings.content_embedding:
            return functional.embedding(items, parameters["ids"])
        projected = functional.embedding(items, self.features) @ parameters["content"]
        return projected + functional.embedding(items, parameters["ids"]) if self.settings.ids else projected

    def against_items(self, parameters: Parameters, rows: Tensor) -> Tensor:
        """``<E(a), row>`` of every item, ``[batch, items]``; without ``ids`` through the features, with no table."""
        if self.settings.ids:
            return rows_times(rows, self.item_embedding(parameters).T)
        return rows_times(rows_times(rows, parameters["content"].T), self.features.T)

    def encode_state(self, parameters: Parameters, state: State) -> Tensor:
        """``u(s)`` with everything that is added to it, ``[batch, dim]``."""
        total = parameters["latent"].expand(state.history.shape[0], -1)
        if self._sees_user:
            total = total + state.user @ parameters["user"]
        if self.settings.state == "personal":
            return total + parameters["personal"]
        if not self.encodes_history:
            return total
        mask = (state.history >= 0).to(self.features.dtype)
        embedded = self.embed(parameters, state.history.clamp(min=0))
        return total + self.encode_history(parameters, embedded, state.levels, mask)

    def encode_history(self, parameters: Parameters, embedded: Tensor, levels: Tensor, mask: Tensor) -> Tensor:
        """The state encoder alone, ``[batch, dim]``.

        Args:
            parameters: at least those named ``state.*``.
            embedded: ``E(a)`` of the history, ``[batch, length, dim]``; what stands where it is padded does not matter.
            levels: reward levels, int64 ``[batch, length]``.
            mask: 1 where there is an interaction, ``[batch, length]``.
        """
        if self.settings.history_rewards:
            gain = 1 + parameters["state.reward_gain"][levels]
            embedded = embedded * gain[..., None] + parameters["state.reward_shift"][levels]
        seen = encoders.encode(self.settings.state, parameters, embedded * mask[..., None], mask)
        return seen * self.trust(mask)

    def _gain(self, gain: Tensor, state: State) -> Tensor:
        """Weight of the bias: affine in the log of the number of known interactions (at most the history's length)."""
        known = (state.history >= 0).to(gain.dtype).sum(-1)
        return self.settings.bias_scale * (gain[0] + gain[1] * torch.log1p(known))

    def kernel_table(self, parameters: Parameters) -> Tensor:
        """Features of every kernel, the public ones and those made of shared, frozen parameters, ``[items, columns]``.

        The inner product of two rows over the columns of one kernel is how alike the two items are.
        """
        parts = [self.kernels]
        if self.settings.affinity and self.settings.affinity_level:
            parts.append(level_features(parameters["bias"]))
        if PAIRS in parameters:
            parts.append(parameters[PAIRS])
        return torch.cat(parts, dim=1) if len(parts) > 1 else self.kernels

    def _affinity(self, parameters: Parameters, state: State) -> Tensor:
        """Recency-weighted kernel features of the history, each kernel with its own weight, ``[batch, columns]``."""
        mask = (state.history >= 0).to(self.kernels.dtype)
        means = self.kernel_means(self.kernel_table(parameters), state.history, mask)
        return torch.einsum("sbf,sf->bf", means, parameters["affinity"][:, self.kernel_of]) * self.trust(mask)

    def kernel_means(self, table: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Recency-weighted means of the kernel features of histories, ``[scales, batch, columns]``."""
        scales = torch.log(torch.tensor(encoders.SCALES, device="cpu")).to(mask.device)
        recency = encoders.recency_weights(scales, mask)
        return torch.einsum("sbl,blf->sbf", recency, functional.embedding(history.clamp(min=0), table))

    def trust(self, mask: Tensor) -> Tensor:
        """``n / (n + history_prior)`` for n known interactions, ``[..., 1]``: who has shown little is told little."""
        return self.trust_of(mask.sum(dim=-1, keepdim=True))

    def trust_of(self, known: Tensor) -> Tensor:
        """The same from the number of known interactions, same shape."""
        return known / (known + self.settings.history_prior).clamp(min=1)


_NEUTRAL = ("state.norm", "state.gate_bias", "state.reward_gain", "state.reward_shift", "state.log_scale")
