"""The file of a policy bundle: a signed manifest and the parts that it lists, one behind the other.

==========  =====  =========================================================================
bytes       size   what
==========  =====  =========================================================================
0           8      ``FEDREC``, 0x1a, the format's number (1)
8           4      length n of the manifest, unsigned, little-endian
12          32     public key of the signer (ed25519); zeros: not signed
44          64     signature of a fixed text and the manifest's bytes; zeros: not signed
108         n      the manifest, JSON in UTF-8; ``parts`` lists name, size and sha256 of every part
108 + n            the parts, in that order, up to the last byte of the file
==========  =====  =========================================================================

There are no paths in it, so none can point elsewhere: a part's name is one of three words. Nothing is read as JSON
before the signature of a pinned key was checked, and nothing of a part before its hash was.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import BundleError
from .bundle_keys import fingerprint, public_bytes

FORMAT = 1
PARTS = ("parameters", "features", "catalogue")
"""Names of the parts, in their order."""
LIMIT = 256 * 2**20
"""Largest file that is read unless the app says otherwise, in bytes."""
_MAGIC = b"FEDREC\x1a" + bytes([FORMAT])
_MANIFEST_LIMIT = 2**20
_HEAD = struct.Struct("<8sI32s64s")
_SIGNED_TEXT = b"fedrec policy bundle, format 1\n"
_UNSIGNED_KEY, _UNSIGNED = bytes(32), bytes(64)


@dataclass(frozen=True)
class BundleFile:
    """A file that was taken apart: whole, by its hashes, but with content that nobody has looked at yet."""

    manifest: Mapping[str, Any]
    parts: Mapping[str, bytes]
    signer: bytes
    """Public key of the signature; empty: not signed."""
    digest: str
    """SHA-256 of the manifest, and so of everything: the bundle's name among bundles."""


def pack(manifest: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """A bundle that nobody has signed yet.

    Raises:
        BundleError: it has other parts than :data:`PARTS`, or a manifest of more than 1 MB.
    """
    if set(parts) != set(PARTS):
        raise BundleError(f"expected the parts {', '.join(PARTS)}, got {', '.join(sorted(parts)) or 'none'}")
    listed = [{"name": name, "size": len(parts[name]), "sha256": _sha256(parts[name])} for name in PARTS]
    text = json.dumps({**manifest, "parts": listed}, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    if len(text) > _MANIFEST_LIMIT:
        raise BundleError(f"expected a manifest of at most {_MANIFEST_LIMIT} bytes, got {len(text)}")
    head = _HEAD.pack(_MAGIC, len(text), _UNSIGNED_KEY, _UNSIGNED)
    return b"".join([head, text, *(parts[name] for name in PARTS)])


def sign(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """The same bundle signed with ``key``; a signature that it has is replaced.

    Raises:
        BundleError: it is no whole bundle.
    """
    unpack(content, keys=None, limit=len(content))
    text = _manifest_bytes(content)
    head = _HEAD.pack(_MAGIC, len(text), public_bytes(key), key.sign(_SIGNED_TEXT + text))
    return head + content[_HEAD.size :]


def unpack(content: bytes, *, keys: Collection[bytes] | None, limit: int = LIMIT) -> BundleFile:
    """Take a bundle apart once its signature and hashes hold.

    Args:
        content: the file's bytes.
        keys: public keys that the app pins, of which one must have signed; none checks no signature, which is for
            looking at a bundle, never for loading it.
        limit: largest size in bytes.

    Raises:
        BundleError: it is too large, no bundle, of another format, unsigned, signed by another key, or altered.
    """
    if len(content) > limit:
        raise BundleError(
            f"expected a bundle of at most {limit} bytes, got {len(content)}; allow more or make it smaller"
        )
    text = _manifest_bytes(content)
    _, _, signer, signature = _HEAD.unpack_from(content)
    if keys is not None:
        _check_signature(text, signer, signature, keys)
    manifest = _manifest(text)
    parts = _parts(manifest.pop("parts", None), content, _HEAD.size + len(text))
    return BundleFile(manifest, parts, b"" if signer == _UNSIGNED_KEY else signer, _sha256(text))


def read(path: Path | str, limit: int = LIMIT) -> bytes:
    """The bytes of a bundle's file: a plain file of at most ``limit`` bytes, no link, no pipe, no device.

    Raises:
        BundleError: it is none, or can't be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        reason = "a symbolic link" if Path(path).is_symlink() else error.strerror or str(error)
        raise BundleError(f"expected the file of a bundle at {path}, got: {reason}; check the path") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"expected the file of a bundle at {path}, got no plain file; check the path")
        if found.st_size > limit:
            raise BundleError(f"expected a bundle of at most {limit} bytes, got {found.st_size} in {path}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)


def _manifest_bytes(content: bytes) -> bytes:
    if len(content) < _HEAD.size or content[:7] != _MAGIC[:7]:
        raise BundleError("expected a fedrec policy bundle, got a file that does not begin like one; check the path")
    magic, length, _, _ = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise BundleError(f"expected a bundle of format {FORMAT}, got format {magic[7]}; update the older side")
    text = content[_HEAD.size : _HEAD.size + length]
    if length > _MANIFEST_LIMIT or len(text) != length:
        raise BundleError(f"expected a manifest of {length} bytes, got {len(text)}: the bundle was cut; get it again")
    return text


def _check_signature(text: bytes, signer: bytes, signature: bytes, keys: Collection[bytes]) -> None:
    if signer == _UNSIGNED_KEY:
        raise BundleError("expected a signed bundle, got one without a signature; sign it with: fedrec bundle sign")
    pinned = [key for key in keys if key == signer]
    if not pinned:
        raise BundleError(
            f"expected a bundle signed by {_keys(keys)}, got one signed by {fingerprint(signer)}; "
            "get it from its maker, or pin that key if you trust it"
        )
    try:
        Ed25519PublicKey.from_public_bytes(pinned[0]).verify(signature, _SIGNED_TEXT + text)
    except InvalidSignature:
        raise BundleError("expected a bundle as it was signed, got an altered one; get it again") from None


def _keys(keys: Iterable[bytes]) -> str:
    return " or ".join(sorted(fingerprint(key) for key in keys)) or "a pinned key (there is none)"


def _manifest(text: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"expected a manifest in JSON, got something else ({type(error).__name__})") from None
    if not isinstance(manifest, dict):
        raise BundleError(f"expected a manifest with names, got {type(manifest).__name__}")
    return manifest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names stand once: of two, readers could pick different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _parts(listed: object, content: bytes, start: int) -> dict[str, bytes]:
    """The parts, each with the size and the hash that the manifest says; not a byte stands behind the last."""
    entries = listed if isinstance(listed, list) else []
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if names != list(PARTS):
        raise BundleError(f"expected the parts {', '.join(PARTS)} in this order, got {_shown(names)}")
    parts = {}
    for entry in entries:
        size = entry.get("size")
        if type(size) is not int or size < 0 or set(entry) != {"name", "size", "sha256"}:
            raise BundleError(f"expected size and sha256 of part {entry['name']}, got {_shown(entry)}")
        part = content[start : start + size]
        if len(part) != size or _sha256(part) != entry["sha256"]:
            raise BundleError(f"expected part {entry['name']} as it was signed, got another; get the bundle again")
        parts[entry["name"]] = part
        start += size
    if start != len(content):
        raise BundleError(f"expected a bundle of {start} bytes, got {len(content)}; get it again")
    return parts


def _shown(value: object) -> str:
    """At most 80 characters of something that nobody vouches for."""
    return repr(value)[:80]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
