"""Rounding of updates for the wire: exact where it can be, unbiased, and never longer than the clip."""

import math

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.client import compression
from fedrec.client.compression import BLOCK, blocks_of, pack, payload_bytes, rounded
from fedrec.errors import WireError
from fedrec.privacy.mechanisms import Sensitivity, clip_update
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

ENCODINGS = ("float16", "int8")


def stream(*parts):
    return torch_stream(0, "compression", *parts)


def norm(update, scales=None):
    scales = scales or {}
    return math.sqrt(sum(float((v.double() / scales.get(n, 1.0)).square().sum()) for n, v in update.items()))


def bell(count=300, name="a"):
    return {name: torch.randn(count, generator=stream("bell"))}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_lies_on_the_grid_travels_exactly(encoding):
    grid = torch.arange(-127, 128, dtype=torch.float32) / 127 if encoding == "int8" else torch.linspace(-1, 1, 257)
    blocks = torch.cat([torch.stack([point, torch.tensor(1.0)]) for point in grid])
    padded = torch.nn.functional.pad(blocks.reshape(-1, 2), (0, BLOCK - 2)).flatten()
    update = {"a": padded, "matrix": torch.zeros(3, 4), "scalar": torch.tensor(-2.5), "none": torch.zeros(0)}
    found = pack(update, encoding, None, stream()).unpack()
    torch.testing.assert_close(found, update, rtol=3e-7, atol=0)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_packed_update_has_the_size_that_is_told(encoding):
    update = {"a": torch.ones(3, 50), "b": torch.ones(1)}
    packed = pack(update, encoding, None, stream())
    tensors = [*packed.codes.values(), *packed.scales.values()]
    shapes = {name: tuple(value.shape) for name, value in update.items()}
    assert sum(tensor.nbytes for tensor in tensors) == payload_bytes(shapes, encoding)
    assert [len(packed.scales[name]) for name in ("a", "b")] == [blocks_of(150), 1] == [3, 1]
    assert payload_bytes(shapes, "float32") == 4 * 151


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_errors_are_as_small_as_the_table_says(encoding):
    values = bell(6400)["a"] * torch.exp(3 * bell(6400, "b")["b"])
    found = pack({"a": values}, encoding, None, stream(1)).unpack()["a"]
    largest = values.reshape(-1, BLOCK).abs().amax(1).repeat_interleave(BLOCK)
    allowed = largest / 127 if encoding == "int8" else torch.maximum(values.abs() * 2**-10, largest * 2**-24)
    assert bool(((found - values).abs() <= allowed * (1 + 1e-5)).all())
    assert not torch.equal(found, values)


def biases(encoding, draws=4000):
    """Mean error of every number over many roundings, in standard errors of its own rounding."""
    values = bell(BLOCK)["a"].repeat(draws, 1)
    found = rounded({"a": values}, encoding, None, stream("draws"))["a"].double()
    spread = found.std(dim=0).clamp(min=1e-12)
    return ((found.mean(0) - values[0]) / spread * math.sqrt(draws))[spread > 1e-9]


@pytest.mark.statistical
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rounding_is_right_on_average(encoding):
    found = biases(encoding)
    assert len(found) > 50
    assert float(found.abs().amax()) < 4.5
    assert 0.6 < float(found.std()) < 1.4  # they vary as much as draws do: nothing is rounded the same way each time


@pytest.mark.statistical
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rounding_up_a_little_too_often_is_found(encoding, monkeypatch):
    plain = compression._cells

    def biased(values, which):
        cells = plain(values, which)
        return compression._Cells(cells.scale, cells.low, cells.step, (cells.chance + 0.05).where(cells.chance > 0, 0))

    monkeypatch.setattr(compression, "_cells", biased)
    assert float(biases(encoding).abs().amax()) > 5


NUMBERS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
UPDATES = st.fixed_dictionaries(
    {
        "a": arrays(np.float32, st.integers(1, 150), elements=NUMBERS, fill=st.just(0.25)),
        "b": arrays(np.float32, (2, 3), elements=NUMBERS),
    }
)


@settings(max_examples=150, deadline=None)
@given(UPDATES, st.sampled_from([1e-3, 0.1, 1.0, 30.0]), st.sampled_from(ENCODINGS), st.integers(0, 9))
def test_no_rounding_is_longer_than_the_clip(values, clip, encoding, seed):
    """Also not with every number rounded away from zero, the worst that can be drawn."""
    update = {name: torch.from_numpy(value) for name, value in values.items()}
    clipped = clip_update(update, clip, {"a": 3.0})
    found = pack(clipped.value, encoding, clipped.sensitivity, stream(seed)).unpack()
    assert norm(found, {"a": 3.0}) <= clip
    blocks = {name: compression._blocks(name, value[None]) for name, value in clipped.value.items()}
    held = compression._within(blocks, encoding, clipped.sensitivity)
    worst = {name: compression._cells(value, encoding).largest for name, value in held.items()}
    assert norm(worst, {"a": 3.0}) <= clip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_without_shrinking_first_the_clip_would_not_hold(encoding, monkeypatch):
    """Planted: round what was clipped and hope. Half of the updates at the clip then come out longer than it."""
    clipped = clip_update(bell(5000), 0.5)
    lengths = [norm(pack(clipped.value, encoding, clipped.sensitivity, stream(n)).unpack()) for n in range(10)]
    assert max(lengths) <= 0.5
    monkeypatch.setattr(compression, "_within", lambda blocks, encoding, bound: blocks)
    lengths = [norm(pack(clipped.value, encoding, clipped.sensitivity, stream(n)).unpack()) for n in range(10)]
    assert max(lengths) > 0.5


def test_shrinking_keeps_the_direction_and_takes_little():
    clipped = clip_update(bell(5000), 0.5)
    for encoding, least in (("float16", 0.999), ("int8", 0.985)):
        found = rounded({"a": clipped.value["a"].repeat(200, 1)}, encoding, clipped.sensitivity, stream("direction"))[
            "a"
        ].mean(0)
        cosine = torch.nn.functional.cosine_similarity(found, clipped.value["a"], dim=0)
        assert cosine > 0.9999
        assert least * 0.5 < norm({"a": found}) <= 0.5


def test_what_is_well_within_the_clip_is_not_shrunk():
    update = {"a": bell(500)["a"] * 1e-3}
    packed = pack(update, "int8", Sensitivity(1.0), stream())
    assert torch.equal(packed.scales["a"], pack(update, "int8", None, stream()).scales["a"])


def test_a_rounded_sum_moves_further_than_one_device():
    """Why a cohort's sum is not rounded before the noise: its neighbour rounds anew in all of its numbers."""
    clip, together = 0.5, {"a": bell(5000)["a"]}
    one = {"a": torch.zeros(5000)}
    one["a"][0] = clip
    neighbour = {"a": together["a"] + one["a"]}
    assert norm(one) <= clip
    first, second = (pack(total, "int8", None, stream("coupled")).unpack()["a"] for total in (together, neighbour))
    assert norm({"a": first - second}) <= clip * 1.2  # with the same draws it may go well
    second = pack(neighbour, "int8", None, stream("others")).unpack()["a"]
    assert norm({"a": first - second}) > clip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_many_devices_are_packed_each_by_itself(encoding):
    updates = torch.stack([bell(200)["a"] * factor for factor in (1.0, 1e-3, 0.0)])
    found = rounded({"a": updates}, encoding, None, stream(2))["a"]
    for row in range(3):
        alone = (found[row] - updates[row]).abs().amax()
        assert float(alone) <= float(updates[row].abs().amax()) / 127
    assert torch.equal(rounded({"a": updates}, "float32", None, stream())["a"], updates)


def test_the_same_stream_rounds_alike_and_the_system_does_not():
    update = bell()
    first, again = (pack(update, "int8", None, stream(3)).codes["a"] for _ in range(2))
    assert torch.equal(first, again)
    unseeded = [pack(update, "int8", None).codes["a"] for _ in range(2)]
    assert not torch.equal(*unseeded)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_no_code_stands_for_is_refused(wrong):
    with pytest.raises(WireError, match=r"expected a finite update to encode, got NaN or infinity in 'a'"):
        pack({"a": torch.tensor([1.0, wrong])}, "int8", None, stream())


def test_a_scale_of_no_tensor_is_refused():
    with pytest.raises(ValueError, match="expected scales for tensors"):
        pack(bell(), "int8", Sensitivity(1.0, {"other": 2.0}), stream())
