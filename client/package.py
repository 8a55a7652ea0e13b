"""What a device needs to recommend and to adapt: policy, initialization, catalogue, and the rules of its federation.

This is the seam between the store and the policy bundle: a bundle is verified and becomes a :class:`PolicyPackage`; the
store keeps packages and knows nothing of signatures. Everything in it is public.

    ``client.bundle`` makes one:   ``PolicyPackage(config=..., catalogue=..., phi=..., reward_range=..., version=...)``
    ``client.device`` takes one:   ``Device.create(path, package)``, ``device.adopt(package)``, ``device.rollback()``
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .._validate import at_least, positive
from ..config import Config
from ..errors import ConfigError, PolicyError
from ..meta.interactions import Catalogue, FeatureGroup
from ..meta.policy import Named, Policy

_PHI = "phi."
_FEATURES = "features"


@dataclass(frozen=True, kw_only=True)
class DeviceNoise:
    """What a device adds and may spend under units ``interaction`` and ``both``.

    Attributes:
        adapt: noise multiplier of a local step of DP-SGD.
        warm: noise multiplier of its vote in the warm start; none where there is none.
        epsilon: what its ledger allows over its life, at ``config.privacy.delta``.
    """

    adapt: float
    warm: float | None
    epsilon: float

    def __post_init__(self) -> None:
        """Check that all of them are positive."""
        positive("the noise multiplier of an adaptation", self.adapt)
        positive("the epsilon of a device", self.epsilon)
        if self.warm is not None:
            positive("the noise multiplier of the warm start", self.warm)


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyPackage:
    """A policy that can be served, and how it is adapted.

    Attributes:
        config: the federation's configuration; ``policy``, ``local``, ``privacy``, ``server`` and the serving steps of
            ``evaluation`` are read, and ``data.positive_threshold``.
        catalogue: the items, in the order of their rows.
        phi: the shared parameters, float32.
        reward_range: lowest and highest reward, public.
        user_features: names of the device features, in their order.
        version: counted from 1; a device takes larger ones only.
        noise: of the device's own releases; none under units ``user`` and ``none``.
    """

    config: Config
    catalogue: Catalogue
    phi: Named
    reward_range: tuple[float, float]
    user_features: tuple[str, ...] = ()
    version: int = 1
    noise: DeviceNoise | None = None

    def __post_init__(self) -> None:
        """Refuse parameters of another policy, NaN, a reversed reward range, or noise where there must be none.

        Raises:
            PolicyError: the parameters do not fit.
            ValueError: another field does not.
        """
        at_least("the package's version", self.version, 1)
        low, high = self.reward_range
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"expected a finite reward range, the lowest first, got {self.reward_range}")
        local = self.config.privacy.unit in ("interaction", "both")
        if local != (self.noise is not None):
            wanted, got = ("some", "none") if local else ("none", "some")
            raise ValueError(f"expected {wanted} device noise under unit {self.config.privacy.unit}, got {got}")
        if len(set(self.catalogue.item_ids)) != len(self.catalogue):
            raise ValueError("expected item ids that differ, got one twice; a device knows items by their id")
        self._check_parameters()

    def _check_parameters(self) -> None:
        wanted = {name: self.policy.specs[name].shape for name in self.policy.names(scope="shared")}
        got = {name: tuple(value.shape) for name, value in self.phi.items()}
        if got != wanted:
            odd = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))[0]
            raise PolicyError(f"expected {odd!r} of shape {wanted.get(odd)}, got {got.get(odd)}: another policy's")
        for name, value in self.phi.items():
            if value.dtype != torch.float32 or not bool(torch.isfinite(value).all()):
                raise PolicyError(
                    f"expected finite float32 parameters, got {value.dtype} or NaN or infinity in {name!r}"
                )

    @cached_property
    def policy(self) -> Policy:
        """The policy over the catalogue."""
        return Policy.for_catalogue(self.config.policy, self.catalogue, len(self.user_features))

    @property
    def schema(self) -> str:
        """Fingerprint of the policy: orders of the federation must name it."""
        return self.policy.schema()

    def encode(self) -> tuple[str, bytes]:
        """The package as JSON and, for its tensors, safetensors."""
        catalogue = self.catalogue
        manifest = {
            "config": self.config.model_dump(mode="json"),
            "feature_names": list(catalogue.feature_names),
            "item_ids": [str(one) for one in catalogue.item_ids],
            "titles": None if catalogue.titles is None else list(catalogue.titles),
            "groups": [asdict(group) for group in catalogue.groups],
            "reward_range": list(self.reward_range),
            "user_features": list(self.user_features),
            "version": self.version,
            "noise": None if self.noise is None else asdict(self.noise),
        }
        tensors = {_PHI + name: value.contiguous() for name, value in self.phi.items()}
        tensors[_FEATURES] = torch.from_numpy(np.ascontiguousarray(catalogue.features, dtype=np.float32))
        return json.dumps(manifest, ensure_ascii=False), save(tensors)

    @classmethod
    def decode(cls, manifest: str, tensors: bytes) -> PolicyPackage:
        """The package that :meth:`encode` took apart.

        Raises:
            PolicyError: it is not one, or not of this version of fedrec.
        """
        try:
            return cls._from(json.loads(manifest), load(tensors))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, ConfigError, SafetensorError) as error:
            raise PolicyError(f"expected a policy package, got something else ({error}); adopt one again") from None

    @classmethod
    def _from(cls, values: Mapping[str, Any], tensors: Named) -> PolicyPackage:
        catalogue = Catalogue(
            features=tensors[_FEATURES].numpy(),
            feature_names=tuple(values["feature_names"]),
            item_ids=list(values["item_ids"]),
            titles=values["titles"],
            groups=tuple(FeatureGroup(**group) for group in values["groups"]),
        )
        low, high = values["reward_range"]
        return cls(
            config=Config.from_mapping(values["config"]),
            catalogue=catalogue,
            phi={name.removeprefix(_PHI): value for name, value in tensors.items() if name.startswith(_PHI)},
            reward_range=(float(low), float(high)),
            user_features=tuple(values["user_features"]),
            version=values["version"],
            noise=None if values["noise"] is None else DeviceNoise(**values["noise"]),
        )
