"""Minimum separation: public turns, what a device can pay at most, and the words for it."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from fedrec.privacy.accounting import Charge, epsilon
from fedrec.privacy.separation import describe_separation, most_participations, turn_of, turns


@pytest.mark.parametrize("separation", [1, 2, 3, 7])
def test_turns_are_public_even_and_drawn_by_the_seed(separation):
    own = turns(4, 100, separation)
    assert np.array_equal(own, turns(4, 100, separation))
    sizes = np.bincount(own, minlength=separation)
    assert (len(sizes), sizes.max() - sizes.min() <= 1) == (separation, True)
    if separation > 1:
        assert not np.array_equal(own, turns(5, 100, separation))
        assert not np.array_equal(own, np.arange(100) % separation)


@pytest.mark.parametrize(("rounds", "separation"), [(1, 1), (10, 1), (10, 3), (9, 3), (2, 5), (0, 2)])
def test_a_device_takes_part_in_every_bth_round_and_in_no_other(rounds, separation):
    held = [turn_of(number, separation) for number in range(1, rounds + 1)]
    counts = [held.count(turn) for turn in range(separation)]
    assert max(counts) == most_participations(rounds, separation)
    for turn in range(separation):
        places = [place for place, other in enumerate(held) if other == turn]
        assert all(gap == separation for gap in np.diff(places))


@pytest.mark.parametrize(("rounds", "separation", "noise"), [(40, 4, 2.0), (41, 4, 2.0), (7, 10, 0.8)])
def test_epsilon_is_that_of_the_participations_of_one_device(rounds, separation, noise):
    """Google's PLD of ceil(rounds / b) plain Gaussians, which rounds 41 and 40 already tell apart."""
    referee = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    referee.compose(dp_accounting.GaussianDpEvent(noise), -(-rounds // separation))
    cost = epsilon([(Charge(noise, 1.0, 1), most_participations(rounds, separation))], 1e-5, "prv")
    assert cost == pytest.approx(referee.get_epsilon(1e-5), rel=0.01)


def test_the_words_say_that_nothing_is_amplified():
    words = "minimum separation 4, no amplification (a device takes part in at most 11 of 41 rounds of adaptation)"
    assert describe_separation(41, 4) == words
    assert "at most 3 of 41" in describe_separation(41, 4, 3)


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="expected separation to be an integer >= 1, got 0"):
        turns(0, 10, 0)
    with pytest.raises(ValueError, match="expected population to be an integer >= 0, got -1"):
        turns(0, -1, 2)
    with pytest.raises(ValueError, match="expected round to be an integer >= 1, got 0"):
        turn_of(0, 2)
    with pytest.raises(ValueError, match="expected separation"):
        most_participations(3, 0)
