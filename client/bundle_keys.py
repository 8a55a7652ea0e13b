"""The ed25519 keys that bundles are signed with: the maker keeps the private one, apps pin the public one.

Both are plain PEM files, as OpenSSL writes and reads them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import BundleError

_LARGEST = 10_000  # bytes of a key's file


def make_keys(path: Path | str) -> tuple[Path, Path]:
    """Write a new private key to ``path``, readable by its owner only, and its public key to ``path`` with ``.pub``.

    Raises:
        BundleError: one of the files is there already, or can't be written.
    """
    secret, public = Path(path), Path(f"{path}.pub")
    for file in (secret, public):
        if file.exists():
            raise BundleError(f"expected no file at {file}, got one; a key is never replaced, choose another path")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    open_half = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        for file, content, mode in ((secret, private, 0o600), (public, open_half, 0o644)):
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(content)
    except OSError as error:
        raise BundleError(f"can't write {path}: {error.strerror or error}; choose another path") from None
    return secret, public


def load_private_key(path: Path | str) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        BundleError: the file can't be read or holds no ed25519 private key without a password.
    """
    try:
        key = serialization.load_pem_private_key(_content(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(
            f"expected an ed25519 private key without a password in {path}; make one with: fedrec bundle keygen"
        )
    return key


def load_public_key(path: Path | str) -> bytes:
    """Read a public key, as 32 bytes: what an app pins.

    Raises:
        BundleError: the file can't be read or holds no ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(_content(path))
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"expected an ed25519 public key in {path}; it is the .pub file of fedrec bundle keygen")
    return key.public_bytes_raw()


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The public half of a key, as 32 bytes."""
    return key.public_key().public_bytes_raw()


def fingerprint(public: bytes) -> str:
    """A public key's short name: 16 digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def _content(path: Path | str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise BundleError(f"expected a key in {path}, got: {error.strerror or error}; check the path") from None
