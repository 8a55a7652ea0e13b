"""Robust aggregators: what all of them promise, their closed forms, and what bad rows can do."""

import math

import numpy as np
import pytest
import torch
from fedrec._streams import torch_stream
from fedrec.privacy.mechanisms import Sensitivity
from fedrec.server import robust

SHAPES = {"bias": (4,), "items": (3, 2), "temperature": ()}
ESTIMATORS = {
    **robust.AGGREGATORS,
    "clipped sum": lambda rows, share: robust.mean(robust.clipped_rows(rows, Sensitivity(6.0)), share),
}
ROBUST = sorted(set(ESTIMATORS) - {"sum"})


def honest(count, seed=0):
    generator = torch_stream(seed, "rows")
    return {name: 1 + 0.3 * torch.randn(count, *shape, generator=generator) for name, shape in SHAPES.items()}


def flattened(named):
    return torch.cat([named[name].double().flatten() for name in sorted(named)])


def with_bad(rows, number, value):
    return {name: torch.cat([tensor, torch.full((number, *tensor.shape[1:]), value)]) for name, tensor in rows.items()}


@pytest.mark.parametrize("name", ESTIMATORS)
class TestEveryAggregator:
    """The contract: whoever adds an aggregator to the registry is held to it."""

    def test_the_shapes_are_those_of_one_update_in_float64(self, name):
        found = ESTIMATORS[name](honest(7), 0.2)
        assert {key: tuple(value.shape) for key, value in found.items()} == SHAPES
        assert all(value.dtype == torch.float64 for value in found.values())

    def test_the_order_of_the_rows_does_not_matter(self, name):
        rows, order = honest(9), torch.randperm(9, generator=torch_stream(1, "order"))
        again = ESTIMATORS[name]({key: value[order] for key, value in rows.items()}, 0.2)
        torch.testing.assert_close(flattened(again), flattened(ESTIMATORS[name](rows, 0.2)), rtol=1e-12, atol=0)

    def test_equal_rows_give_that_row(self, name):
        rows = {key: value[:1].expand(6, *value.shape[1:]) for key, value in honest(1).items()}
        torch.testing.assert_close(flattened(ESTIMATORS[name](rows, 0.2)), flattened(honest(1)), rtol=1e-6, atol=0)

    def test_without_outliers_it_is_near_the_mean(self, name):
        """Means of 200 rows of spread 0.3 lie within 0.02 of each other; Krum answers with one row, 0.3 away."""
        rows = honest(200)
        away = (flattened(ESTIMATORS[name](rows, 0.1)) - flattened(robust.mean(rows, 0.0))).abs().max()
        assert away < (1.0 if name == "krum" else 0.08)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_few_rows_are_enough(self, name, count):
        rows = honest(count)
        found, stacked = flattened(ESTIMATORS[name](rows, 0.4)), torch.stack([flattened(one) for one in split(rows)])
        assert ((found >= stacked.min(0).values - 1e-6) & (found <= stacked.max(0).values + 1e-6)).all()

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused(self, name, bad):
        rows = honest(5)
        rows["items"][3, 1, 0] = bad
        with pytest.raises(ValueError, match=r"expected finite rows, got NaN or inf in \['items'\]; pass them through"):
            ESTIMATORS[name](rows, 0.2)

    def test_no_rows_and_unequal_stacks_are_refused(self, name):
        for rows in (honest(0), honest(3) | {"bias": torch.zeros(2, 4)}):
            with pytest.raises(ValueError, match="equally many rows, at least one"):
                ESTIMATORS[name](rows, 0.2)


def split(rows):
    return [{name: value[place] for name, value in rows.items()} for place in range(len(rows["bias"]))]


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("value", [1e6, -1e30])
def test_a_fifth_of_the_rows_moves_it_no_further_than_honest_rows_reach(name, value):
    rows = honest(40)
    found = flattened(ESTIMATORS[name](with_bad(rows, 10, value), 0.2))
    near = flattened(robust.mean(rows, 0.0))
    bound = 6.0 / 5 + 1 if name == "clipped sum" else 1.0  # a fifth of all rows, each of norm 6
    assert (found - near).abs().max() < bound
    assert (flattened(robust.mean(with_bad(rows, 10, value), 0.2)) - near).abs().max() > 1e5


@pytest.mark.parametrize("name", ["trimmed", "krum", "multi_krum"])
def test_beyond_its_share_it_breaks(name):
    """Bad rows that agree, more of them than it was told of: the share is a promise about the devices, not a charm."""
    rows = with_bad(honest(10), 12, 1e6)
    assert flattened(ESTIMATORS[name](rows, 0.1)).abs().max() > 1e4


def test_without_a_cut_the_trimmed_mean_is_the_mean_to_the_bit():
    rows = honest(11)
    assert torch.equal(flattened(robust.trimmed_mean(rows, 0.0)), flattened(robust.mean(rows, 0.0)))


def test_trimmed_mean_and_median_are_numpys():
    rows = honest(11)
    for name, tensor in rows.items():
        values = np.sort(tensor.double().numpy(), axis=0)
        np.testing.assert_allclose(robust.trimmed_mean(rows, 0.2)[name].numpy(), values[3:-3].mean(0), rtol=1e-12)
        np.testing.assert_allclose(robust.median(rows, 0.2)[name].numpy(), np.median(values, axis=0), rtol=1e-12)


def test_a_share_is_rounded_up_and_by_its_intent():
    assert [robust.bad_rows(n, 0.1) for n in (9, 10, 11, 30)] == [1, 1, 2, 3]


def test_krum_scores_by_hand():
    """On a line at 0, 1, 2, 10, 11, 30 with f = 1, each counts its n - f - 2 = 3 nearest."""
    rows = {"w": torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 30.0])[:, None]}
    expected = [1 + 4 + 100, 1 + 1 + 81, 1 + 4 + 64, 1 + 64 + 81, 1 + 81 + 100, 361 + 400 + 784]
    torch.testing.assert_close(robust.krum_scores(rows, 1 / 6), torch.tensor(expected, dtype=torch.float64))
    assert robust.krum(rows, 1 / 6)["w"].tolist() == [2.0]
    assert robust.multi_krum(rows, 1 / 6)["w"].item() == pytest.approx((0 + 1 + 2 + 10 + 11) / 5)


def test_columns_in_parts_make_the_same(monkeypatch):
    rows = honest(12)
    whole = {name: flattened(one(rows, 0.2)) for name, one in robust.AGGREGATORS.items()}
    monkeypatch.setattr(robust, "_ROOM", 12)
    for name, one in robust.AGGREGATORS.items():
        torch.testing.assert_close(flattened(one(rows, 0.2)), whole[name], rtol=1e-12, atol=0)


def test_rows_are_clipped_jointly_in_scaled_space_and_short_ones_are_left_alone():
    rows = {"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[8.0], [0.1]])}
    bound = Sensitivity(1.0, {"b": 2.0})
    short = robust.clipped_rows(rows, bound)
    assert robust.row_norms(short, bound)[0].item() == pytest.approx(1.0, rel=1e-6)
    assert short["a"][0].item() / short["b"][0].item() == pytest.approx(3 / 8)
    assert (short["a"][1].item(), short["b"][1].item()) == (rows["a"][1].item(), rows["b"][1].item())
