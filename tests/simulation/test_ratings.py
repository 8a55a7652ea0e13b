import numpy as np
import pytest
import small_world as small
from fedrec.simulation.ratings import SHRINKAGE, ServedRatings
from fedrec.simulation.serving import Served


def served(data=None):
    world = small.world(data)
    phi = {name: value + 0.1 for name, value in world.initialization().items()}
    return Served(world=world, phi=phi, which="test")


def test_ratings_are_a_ridge_regression_on_the_devices_own():
    scorer = served()
    data, devices = scorer.world.dataset, np.array([2, 7])
    items = np.array([5, 11])
    scores = scorer.score(devices).double().numpy()
    predicted = ServedRatings(scorer).rate(devices, items)
    for row, device in enumerate(devices):
        known = data.rows(int(device))
        known = slice(known.start, known.stop - 1)
        standard = (scores[row] - scores[row].mean()) / scores[row].std()
        x, y = standard[data.items[known]], data.rewards[known].astype(np.float64)
        mean = (y.sum() + SHRINKAGE * 3.0) / (len(y) + SHRINKAGE)
        centred = x - x.mean()
        slope = centred @ (y - mean) / (centred @ centred + SHRINKAGE)
        assert predicted[row] == pytest.approx(
            np.clip(mean + slope * (standard[items[row]] - x.mean()), 1, 5), rel=1e-5
        )


def test_the_rating_that_is_asked_for_is_not_seen():
    data, device = small.dataset(), 3
    rows = data.rows(device)
    asked = np.array([data.items[rows.stop - 1]])
    before = ServedRatings(served()).rate(np.array([device]), asked)
    rewards = data.rewards[rows].copy()
    rewards[-1] = 6.0 - rewards[-1]
    after = ServedRatings(served(small.with_logs(data, {device: (data.items[rows], rewards)})))
    assert after.rate(np.array([device]), asked) == pytest.approx(before, abs=0)


def test_a_device_without_ratings_gets_the_middle_and_nobody_leaves_the_scale():
    data = small.with_logs(small.dataset(), {0: ([], []), 1: ([3] * 40, [5.0] * 40)})
    predicted = ServedRatings(served(data)).rate(np.array([0, 1]), np.array([4, 3]))
    assert predicted[0] == 3.0
    assert 4.5 < predicted[1] <= 5.0
