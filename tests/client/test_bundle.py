"""Policy bundles: what goes in comes out, and nothing but what was signed does."""

import json
import os
import struct

import numpy as np
import pytest
import torch
from bundle_world import KEY, OTHER, PINNED, STATEMENT, bundle, package
from fedrec.client import bundle_file
from fedrec.client.bundle import inspect_bundle, load_bundle, make_bundle
from fedrec.client.bundle_file import pack, read, sign, unpack
from fedrec.client.bundle_keys import load_private_key, load_public_key, make_keys, public_bytes
from fedrec.client.quantize import dequantized, quantized
from fedrec.errors import BundleError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

HEAD = 108


def taken_apart(content):
    """Manifest and parts of a bundle, to be changed."""
    found = unpack(content, keys=None)
    return dict(found.manifest), dict(found.parts)


def changed(**manifest):
    """A bundle whose maker signed another manifest."""
    values, parts = taken_apart(bundle())
    return sign(pack(values | manifest, parts), KEY)


def with_part(**changes):
    values, parts = taken_apart(bundle())
    return sign(pack(values, parts | changes), KEY)


def raw(text, parts=b""):
    """A signed bundle with any text as its manifest."""
    head = struct.pack(
        "<8sI32s64s", b"FEDREC\x1a\x01", len(text), public_bytes(KEY), KEY.sign(bundle_file._SIGNED_TEXT + text)
    )
    return head + text + parts


def test_a_package_comes_back_to_the_bit():
    sent, parent = package(3), inspect_bundle(bundle(2))
    got = load_bundle(sign(make_bundle(sent, [STATEMENT], parent=parent), KEY), PINNED)
    assert got.package.schema == sent.schema
    assert got.package.config == sent.config
    assert all(torch.equal(got.package.phi[name], value) for name, value in sent.phi.items())
    assert np.array_equal(got.package.catalogue.features, sent.catalogue.features)
    assert got.package.catalogue.groups == sent.catalogue.groups
    assert tuple(got.package.catalogue.item_ids) == tuple(sent.catalogue.item_ids)
    assert (got.version, got.package.reward_range, got.privacy) == (3, (1.0, 5.0), (STATEMENT,))
    assert (got.parent, got.signer, got.created_by) == (parent.digest, PINNED[0], "fedrec 0.1.0")


def test_eight_bit_weights_come_back_rounded_and_say_how_far():
    sent = package()
    got = load_bundle(bundle(weights="int8"), PINNED)
    for name, value in sent.phi.items():
        step = value.abs().amax(-1, keepdim=True) / 254 if value.dim() > 1 else torch.zeros(())
        assert bool(((got.package.phi[name] - value).abs() <= step * 1.001).all()), name
    assert 0 < got.score_error[1] < got.score_error[0] < 0.2
    assert load_bundle(bundle(), PINNED).score_error == (0.0, 0.0)


def test_rows_are_quantized_each_by_itself():
    named = {"w": torch.tensor([[1.0, -0.5], [1e-3, 0.0], [0.0, 0.0]]), "bias": torch.tensor([0.1, 7.0])}
    stored = quantized(named)
    assert stored["w"].tolist() == [[127, -64], [127, 0], [0, 0]]
    assert torch.equal(stored["bias"], named["bias"])
    torch.testing.assert_close(dequantized(stored)["w"], named["w"], rtol=0, atol=1 / 254 + 1e-6)


CONTENT = bundle()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(CONTENT) - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(place, flip):
    altered = bytearray(CONTENT)
    altered[place] ^= flip
    with pytest.raises(BundleError) as caught:
        load_bundle(bytes(altered), PINNED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("region", ["magic", "format", "length", "key", "signature", "manifest", "part", "last"])
def test_no_region_can_be_changed(region):
    size = struct.unpack_from("<I", CONTENT, 8)[0]
    places = {"magic": 0, "format": 7, "length": 8, "key": 12, "signature": 44, "manifest": HEAD + 5}
    places |= {"part": HEAD + size + 20, "last": len(CONTENT) - 1}
    altered = bytearray(CONTENT)
    altered[places[region]] ^= 1
    with pytest.raises(BundleError):
        load_bundle(bytes(altered), PINNED)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(CONTENT) - 1))
def test_a_bundle_that_was_cut_is_refused(length):
    with pytest.raises(BundleError):
        load_bundle(CONTENT[:length], PINNED)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_anything_that_a_pinned_key_signs_is_a_bundle_or_refused(text):
    """The one who signs is trusted with content, not with the reader's stability."""
    with pytest.raises(BundleError):
        load_bundle(raw(text), PINNED)


REFUSED = {
    "longer than it says": (lambda: CONTENT + b"x", "expected a bundle of"),
    "unsigned": (lambda: make_bundle(package(), []), "expected a signed bundle"),
    "another's": (lambda: bundle(key=OTHER), "got one signed by"),
    "a zip": (lambda: b"PK\x03\x04" + bytes(200), "does not begin like one"),
    "a pickle": (lambda: b"\x80\x04" + bytes(200), "does not begin like one"),
    "empty": (lambda: b"", "does not begin like one"),
    "of a later format": (lambda: CONTENT[:7] + b"\x02" + CONTENT[8:], "of format 1, got format 2"),
    "a manifest that is no object": (lambda: raw(b"[]"), "with names, got list"),
    "a manifest that is no JSON": (lambda: raw(b"{"), "in JSON, got something else"),
    "a name twice": (lambda: raw(b'{"version": 1, "version": 2}'), "in JSON, got something else"),
    "infinity in JSON": (lambda: raw(b'{"version": Infinity}'), "in JSON, got something else"),
    "nested without end": (lambda: raw(b"[" * 100_000), "in JSON, got something else"),
    "no parts": (lambda: raw(b'{"version": 1}'), "expected the parts parameters, features, catalogue"),
    "a part with a path": (
        lambda: raw(json.dumps({"parts": [{"name": "../../etc/passwd", "size": 0, "sha256": ""}]}).encode()),
        "expected the parts .* got .*passwd",
    ),
    "a part twice": (
        lambda: raw(json.dumps({"parts": [{"name": "parameters", "size": 0, "sha256": ""}] * 3}).encode()),
        "expected the parts",
    ),
    "a part of negative size": (
        lambda: raw(
            json.dumps({"parts": [{"name": name, "size": -1, "sha256": ""} for name in bundle_file.PARTS]}).encode()
        ),
        "expected size and sha256",
    ),
    "an unknown field": (lambda: changed(extra=1), "'extra' unknown"),
    "version true": (lambda: changed(version=True), "version of another type"),
    "version 0": (lambda: changed(version=0), "version to be an integer >= 1"),
    "another schema": (lambda: changed(schema="0" * 16), "whose schema schema is"),
    "another feature schema": (lambda: changed(features="0" * 16), "whose features schema is"),
    "weights of a later fedrec": (lambda: changed(weights="int4"), "weights float32 or int8"),
    "an unknown setting": (lambda: changed(config={"policy": {"magic": 1}}), "that this fedrec .* can read"),
    "half a statement": (lambda: changed(privacy=[{"epsilon": 1}]), "privacy statement with all of its fields"),
    "a negative epsilon": (
        lambda: changed(privacy=[STATEMENT.to_dict() | {"epsilon": -1.0}]),
        "epsilon >= 0",
    ),
    "a reversed reward range": (lambda: changed(reward_range=[5, 1]), "lowest first"),
    "a part that is no safetensors": (lambda: with_part(parameters=b"\x80\x04K\x01."), "that this fedrec .* can read"),
    "NaN": (
        lambda: with_part(parameters=save({n: v * float("nan") for n, v in package().phi.items()})),
        "NaN or infinity",
    ),
    "a tensor too many": (
        lambda: with_part(parameters=save({**package().phi, "extra": torch.zeros(1)})),
        "expected 'extra' to be not there",
    ),
    "another shape": (
        lambda: with_part(parameters=save({**package().phi, "bias": torch.zeros(3)})),
        r"'bias' to be float32 \[11\], got float32 \[3\]",
    ),
    "another type": (
        lambda: with_part(parameters=save({n: v.double() for n, v in package().phi.items()})),
        "to be float32 .*, got float64",
    ),
    "features that are infinite": (
        lambda: with_part(features=save({"features": torch.full((11, 7), float("inf"))})),
        "finite catalogue features",
    ),
    "features of other items": (lambda: with_part(features=save({"features": torch.zeros(3, 7)})), "of shape"),
    "a catalogue that is no JSON": (lambda: with_part(catalogue=b"not JSON"), "that this fedrec .* can read"),
    "ids that are no texts": (lambda: with_part(catalogue=_catalogue(item_ids=[1] * 11)), "texts in item_ids"),
    "an id twice": (lambda: with_part(catalogue=_catalogue(item_ids=["a"] * 11)), "got one twice"),
}


def _catalogue(**changes):
    _, parts = taken_apart(bundle())
    return json.dumps(json.loads(parts["catalogue"]) | changes).encode()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_as_it_must_be_is_one_sentence(name):
    content, sentence = REFUSED[name]
    with pytest.raises(BundleError, match=sentence) as caught:
        load_bundle(content(), PINNED)
    assert "\n" not in str(caught.value)


def test_without_a_pinned_key_nothing_is_loaded():
    with pytest.raises(BundleError, match="there is none"):
        load_bundle(CONTENT, [])


def test_a_signature_is_of_the_whole_bundle():
    """A manifest's signature with another bundle's parts behind it."""
    _, parts = taken_apart(with_part(parameters=save({n: v + 1 for n, v in package().phi.items()})))
    size = struct.unpack_from("<I", CONTENT, 8)[0]
    mixed = CONTENT[: HEAD + size] + b"".join(parts[name] for name in bundle_file.PARTS)
    with pytest.raises(BundleError, match="part parameters as it was signed"):
        load_bundle(mixed, PINNED)


def test_only_plain_files_of_a_bounded_size_are_read(tmp_path):
    path = tmp_path / "a.bundle"
    path.write_bytes(CONTENT)
    assert load_bundle(path, PINNED, limit=len(CONTENT)).version == 1
    for source in (path, CONTENT):
        with pytest.raises(BundleError, match="at most"):
            load_bundle(source, PINNED, limit=len(CONTENT) - 1)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in (
        ("link", "a symbolic link"),
        ("pipe", "no plain file"),
        (".", "no plain file"),
        ("x", "No such"),
    ):
        with pytest.raises(BundleError, match=sentence):
            read(tmp_path / name)


def test_a_parent_must_be_older():
    with pytest.raises(BundleError, match="expected a version above 2, the parent's, got 2"):
        make_bundle(package(2), [], parent=inspect_bundle(bundle(2)))


def test_keys_are_written_once_and_for_their_owner(tmp_path):
    secret, public = make_keys(tmp_path / "key")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert public_bytes(load_private_key(secret)) == load_public_key(public)
    with pytest.raises(BundleError, match="a key is never replaced"):
        make_keys(tmp_path / "key")
    with pytest.raises(BundleError, match=r"ed25519 public key.*\.pub"):
        load_public_key(secret)
    with pytest.raises(BundleError, match="ed25519 private key"):
        load_private_key(public)
    with pytest.raises(BundleError, match="check the path"):
        load_public_key(tmp_path / "none")
