"""The policy bundle: a signed :class:`PolicyPackage` in one file, with what is known about where it comes from.

``load_bundle`` is the only way from a file to a policy. In this order it checks size, signature, hashes, the manifest's
fields, and then what every part holds: names, types and shapes as the policy wants them, every number finite. Tensors
are safetensors and all the rest is JSON, so that nothing in a bundle is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .. import __version__
from .._streams import torch_stream
from ..config import Config
from ..errors import BundleError, FedrecError
from ..meta.interactions import Catalogue, FeatureGroup
from ..meta.policy import Named, Policy
from ..privacy.statement import PrivacyStatement
from .bundle_file import LIMIT, BundleFile, pack, read, unpack
from .package import DeviceNoise, PolicyPackage
from .probing import random_states, with_personal
from .quantize import dequantized, is_quantized, quantized, scale_name

Weights = Literal["float32", "int8"]

_FEATURES = "features"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "created_by": str,
    "features": str,
    "noise": (dict, type(None)),
    "parent": str,
    "privacy": list,
    "reward_range": list,
    "schema": str,
    "score_error": list,
    "version": int,
    "weights": str,
}
"""The manifest's fields and their types."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A bundle that was read.

    Attributes:
        package: policy, catalogue and the rules of the federation.
        privacy: what making the policy has cost, one statement a privacy unit; empty: nothing is claimed.
        parent: digest of the bundle that it follows; empty: of none.
        weights: how its matrices are stored.
        score_error: largest and mean error of a score that rounding to ``int8`` made, over random states; else zeros.
        created_by: ``fedrec`` and its version.
        digest: SHA-256 of its manifest: two bundles with the same one are the same.
        signer: public key of its signature; empty: not signed.
        sizes: bytes of every part.
    """

    package: PolicyPackage
    privacy: tuple[PrivacyStatement, ...]
    parent: str
    weights: Weights
    score_error: tuple[float, float]
    created_by: str
    digest: str
    signer: bytes
    sizes: Mapping[str, int]

    @property
    def version(self) -> int:
        """The package's version."""
        return self.package.version


def make_bundle(
    package: PolicyPackage,
    privacy: Collection[PrivacyStatement],
    *,
    parent: Bundle | None = None,
    weights: Weights = "float32",
) -> bytes:
    """An unsigned bundle of ``package``.

    Args:
        package: the policy.
        privacy: what making it has cost.
        parent: the bundle that it follows, which must be of a smaller version.
        weights: ``int8`` stores matrices in a quarter of the bytes, for inference.

    Raises:
        BundleError: the parent is not of a smaller version.
    """
    if parent is not None and parent.version >= package.version:
        raise BundleError(f"expected a version above {parent.version}, the parent's, got {package.version}")
    kept = quantized(package.phi) if weights == "int8" else package.phi
    manifest = {
        "config": package.config.model_dump(mode="json"),
        "created_by": f"fedrec {__version__}",
        "features": feature_schema(package.catalogue, package.user_features),
        "noise": None if package.noise is None else asdict(package.noise),
        "parent": "" if parent is None else parent.digest,
        "privacy": [asdict(statement) for statement in privacy],
        "reward_range": list(package.reward_range),
        "schema": package.schema,
        "score_error": list(score_error(package, dequantized(kept))),
        "version": package.version,
        "weights": weights,
    }
    features = torch.from_numpy(np.ascontiguousarray(package.catalogue.features, dtype=np.float32))
    parts = {
        "parameters": save({name: value.contiguous() for name, value in kept.items()}),
        "features": save({_FEATURES: _narrow(features)}),
        "catalogue": json.dumps(_catalogue_texts(package), ensure_ascii=False).encode(),
    }
    return pack(manifest, parts)


def load_bundle(source: Path | str | bytes, keys: Collection[bytes], *, limit: int = LIMIT) -> Bundle:
    """Read a bundle that one of ``keys`` has signed.

    Args:
        source: its file or its bytes.
        keys: public keys that the app pins (``bundle_keys.load_public_key``).
        limit: largest size in bytes.

    Raises:
        BundleError: anything about it is not as it must be; nothing of it is used then.
    """
    content = source if isinstance(source, bytes) else read(source, limit)
    return _read(unpack(content, keys=keys, limit=limit))


def inspect_bundle(source: Path | str | bytes, *, limit: int = LIMIT) -> Bundle:
    """Read a bundle of whomever, to look at it or to sign it: a device must use :func:`load_bundle`.

    Raises:
        BundleError: as there, but for the signature.
    """
    content = source if isinstance(source, bytes) else read(source, limit)
    return _read(unpack(content, keys=None, limit=limit))


def feature_schema(catalogue: Catalogue, user_features: Collection[str]) -> str:
    """Fingerprint of what the columns of the features mean, those of items and those of devices."""
    groups = [(group.name, group.kind, group.start, group.stop) for group in catalogue.groups]
    text = repr((tuple(catalogue.feature_names), groups, tuple(user_features)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def score_error(package: PolicyPackage, other: Named) -> tuple[float, float]:
    """Largest and mean difference that parameters ``other`` make to scores, over random states."""
    policy, generator = package.policy, torch_stream(0, "quantized")
    states = random_states(policy, generator)
    with torch.no_grad():
        plain, rough = (policy.scores(with_personal(policy, named), states) for named in (package.phi, other))
    gone = (plain - rough).abs()
    return float(gone.amax()), float(gone.mean())


def _narrow(features: Tensor) -> Tensor:
    """Features of which none is anything but 0 and 1, and so most of them, as bytes."""
    return features.to(torch.uint8) if bool(((features == 0) | (features == 1)).all()) else features


def _catalogue_texts(package: PolicyPackage) -> dict[str, Any]:
    catalogue = package.catalogue
    return {
        "feature_names": list(catalogue.feature_names),
        "groups": [asdict(group) for group in catalogue.groups],
        "item_ids": [str(one) for one in catalogue.item_ids],
        "titles": None if catalogue.titles is None else list(catalogue.titles),
        "user_features": list(package.user_features),
    }


def _read(file: BundleFile) -> Bundle:
    manifest = _checked_manifest(file.manifest)
    try:
        package = _package(manifest, file.parts)
        privacy = tuple(PrivacyStatement.from_dict(one) for one in manifest["privacy"])
        largest, mean = manifest["score_error"]
    except BundleError:
        raise
    except (FedrecError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise BundleError(
            f"expected a bundle that this fedrec {__version__} can read, got one by {manifest['created_by']} where "
            f"{' '.join(str(error).split())[:300] or type(error).__name__}"
        ) from None
    return Bundle(
        package=package,
        privacy=privacy,
        parent=manifest["parent"],
        weights=manifest["weights"],
        score_error=(float(largest), float(mean)),
        created_by=manifest["created_by"],
        digest=file.digest,
        signer=file.signer,
        sizes={name: len(part) for name, part in file.parts.items()},
    )


def _checked_manifest(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    odd = sorted(set(manifest) ^ set(_FIELDS))
    if odd:
        state = "missing" if odd[0] in _FIELDS else "unknown"
        raise BundleError(f"expected a manifest with {', '.join(sorted(_FIELDS))}, got {odd[0][:40]!r} {state}")
    for name, kind in _FIELDS.items():
        if not isinstance(manifest[name], kind) or isinstance(manifest[name], bool):
            raise BundleError(f"expected {name} of another type in the manifest, got {type(manifest[name]).__name__}")
    if manifest["weights"] not in ("float32", "int8"):
        raise BundleError(f"expected weights float32 or int8, got {manifest['weights'][:40]!r}; update fedrec")
    return manifest


def _package(manifest: Mapping[str, Any], parts: Mapping[str, bytes]) -> PolicyPackage:
    texts = json.loads(parts["catalogue"])
    catalogue = Catalogue(
        features=_features(parts["features"]),
        feature_names=_texts(texts, "feature_names"),
        item_ids=_texts(texts, "item_ids"),
        titles=None if texts["titles"] is None else _texts(texts, "titles"),
        groups=tuple(FeatureGroup(**group) for group in texts["groups"]),
    )
    config = Config.from_mapping(manifest["config"])
    low, high = manifest["reward_range"]
    user_features = _texts(texts, "user_features")
    policy = Policy.for_catalogue(config.policy, catalogue, len(user_features))
    package = PolicyPackage(
        config=config,
        catalogue=catalogue,
        phi=_parameters(parts["parameters"], policy, manifest["weights"]),
        reward_range=(float(low), float(high)),
        user_features=user_features,
        version=manifest["version"],
        noise=None if manifest["noise"] is None else DeviceNoise(**manifest["noise"]),
    )
    found = {"schema": package.schema, "features": feature_schema(catalogue, user_features)}
    for name, schema in found.items():
        if manifest[name] != schema:
            raise BundleError(
                f"expected a bundle whose {name} schema is {schema}, as its content says, got {manifest[name][:40]!r}; "
                f"it was made by {manifest['created_by']}: use the same version"
            )
    return package


def _texts(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = values[name]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BundleError(f"expected texts in {name} of the catalogue, got others")
    return tuple(found)


def _features(part: bytes) -> np.ndarray:
    tensors = load(part)
    features = tensors.get(_FEATURES)
    if (
        len(tensors) != 1
        or features is None
        or features.dtype not in (torch.float32, torch.uint8)
        or features.dim() != 2
    ):
        raise BundleError("expected one float32 matrix of item features, got something else")
    values: np.ndarray = features.to(torch.float32).numpy()
    return values


def _parameters(part: bytes, policy: Policy, weights: Weights) -> Named:
    """The shared parameters, if they are what the policy's specification says, to the name, type and shape."""
    tensors = load(part)
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in policy.names(scope="shared"):
        shape = policy.specs[name].shape
        rounded = weights == "int8" and is_quantized(shape)
        wanted[name] = (torch.int8 if rounded else torch.float32, shape)
        if rounded:
            wanted[scale_name(name)] = (torch.float32, shape[:-1])
    found = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    if found != wanted:
        odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))[0]
        raise BundleError(f"expected {odd[:60]!r} to be {_told(wanted.get(odd))}, got {_told(found.get(odd))}")
    return dequantized(tensors)


def _told(found: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "not there" if found is None else f"{str(found[0]).removeprefix('torch.')} {list(found[1])}"
