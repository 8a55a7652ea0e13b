"""What acts: exact propensities, streams that belong to devices, logs that grow, yardsticks that keep their order."""

import itertools

import numpy as np
import pytest
import torch
from fedrec.meta.acting import Exploration, first_draw
from fedrec.simulation.online.agents import PolicyAgent, ScoringAgent
from fedrec.simulation.online.journal import Journal
from fedrec.simulation.online.session import Session
from fedrec.simulation.online.yardsticks import OracleAgent, PopularityAgent, RandomAgent
from fedrec.simulation.serving import Served
from online_world import lively, users


class Fixed(ScoringAgent):
    """Scores that are given."""

    def __init__(self, table, size, *, devices, temperature=1.0, seed=0):
        how = Exploration(size=size, temperature=temperature)
        super().__init__(Journal(devices=devices), how, items=len(table), seed=seed)
        self.table = torch.tensor(table)

    def scores(self, rows):
        return self.table.expand(len(rows), -1)


def policy_agent(world_of, **options):
    journal = Journal(devices=world_of.population.users, kept=options.pop("kept", "clicks"))
    world = world_of.world
    return PolicyAgent(world, world.initialization(), journal, world_of.exploration, seed=0, **options)


def played(world_of, agent, steps=6, rows=None):
    session = Session(simulator=world_of.simulator())
    session.play(agent, np.arange(world_of.population.users) if rows is None else rows, steps)
    return session


def test_every_slot_has_its_exact_propensities():
    table = np.array([1.0, 0.2, -0.5, 0.0, 2.0])
    shown = Fixed(table, 3, devices=6, temperature=0.7).act(np.arange(6))
    weights = np.exp(table / 0.7)
    for items, conditional, first in zip(*shown, strict=True):
        left = weights.sum() - np.concatenate([[0], np.cumsum(weights[items])[:-1]])
        np.testing.assert_allclose(conditional, weights[items] / left, rtol=1e-6)
        np.testing.assert_allclose(first, weights[items] / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(first_draw(torch.from_numpy(shown.propensities)), shown.first, rtol=1e-9)


def test_slates_come_as_often_as_their_propensities_say():
    agent = Fixed(np.array([0.8, 0.0, -0.6]), 2, devices=20_000)
    shown = agent.act(np.arange(20_000))
    for slate in itertools.permutations(range(3), 2):
        hit = (shown.items == slate).all(1)
        expected = shown.propensities[hit].prod(1)[0]
        assert abs(hit.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(hit))


def test_a_device_draws_the_same_alone_as_among_others():
    together = Fixed(np.zeros(40), 4, devices=9).act(np.arange(9))
    for row in range(9):
        alone = Fixed(np.zeros(40), 4, devices=9).act(np.array([row]))
        np.testing.assert_array_equal(alone.items[0], together.items[row])
    assert len({tuple(items) for items in together.items}) == 9


def test_another_interaction_and_another_seed_draw_anew():
    world_of = users()
    agent = RandomAgent(Journal(devices=24), Exploration(size=3), items=30, seed=0)
    first = agent.act(np.arange(24))
    played(world_of, agent, steps=1)
    other = RandomAgent(Journal(devices=24), Exploration(size=3), items=30, seed=1)
    assert not np.array_equal(first.items, agent.act(np.arange(24)).items)
    assert not np.array_equal(first.items, other.act(np.arange(24)).items)


def test_what_was_clicked_is_not_shown_again_unless_asked_for():
    world_of = users(policy__bias=False)
    agent = policy_agent(world_of)
    played(world_of, agent, steps=12)
    journal = agent.journal
    for device in range(24):
        items = journal.columns["items"][device, : journal.counts[device]]
        assert len(set(items.tolist())) == len(items)
    assert journal.counts.sum() > 20
    assert policy_agent(world_of, repeats=True).allowed(np.arange(24)).all()


def test_who_has_clicked_everything_may_see_everything_again():
    agent = Fixed(np.zeros(2), 2, devices=1)
    agent.journal.append(
        np.array([0]), np.array([[0, 1]]), np.ones((1, 2)), np.ones((1, 2), bool), np.ones((1, 2)), np.array([0])
    )
    assert sorted(agent.act(np.array([0])).items[0]) == [0, 1]


def test_a_catalogue_that_runs_out_leaves_slots_empty():
    shown = Fixed(np.zeros(2), 3, devices=1).act(np.array([0]))
    assert shown.items[0, 2] == -1
    assert shown.first[0, 2] == 1
    assert shown.slates[0, 2] == shown.items[0, 0]


@pytest.mark.parametrize("kept", ["clicks", "shown"])
def test_the_log_holds_what_was_clicked_or_shown_with_the_propensity_of_that_moment(kept):
    world_of = users(online__log=kept)
    agent = policy_agent(world_of, kept=kept)
    rows = np.arange(24)
    expected = {device: [] for device in range(24)}
    session = Session(simulator=world_of.simulator())
    for step in range(8):
        shown = agent.act(rows)
        feedback = session.simulator.respond(shown.slates, rows)
        agent.observe(rows, shown, feedback)
        for place, slot in itertools.product(range(24), range(3)):
            if kept == "shown" or feedback.clicks[place, slot]:
                cell = place, slot
                row = (shown.items[cell], feedback.rewards[cell], shown.first[cell], step)
                expected[place].append(row)
    data = agent.journal.dataset(world_of.world.dataset)
    for device, wanted in expected.items():
        own = data.rows(device)
        got = [data.items[own], data.rewards[own], data.propensities[own], data.timestamps[own]]
        np.testing.assert_allclose(np.transpose(got), np.reshape(wanted, (-1, 4)), rtol=1e-6)
    assert data.interactions == sum(map(len, expected.values())) > 20


def test_the_policy_acts_from_what_it_serves_on_its_own_log():
    world_of = users()
    agent = policy_agent(world_of)
    agent.phi = {name: value + 0.1 for name, value in agent.phi.items()}
    played(world_of, agent, steps=8)
    world = agent.journal.world(world_of.world)
    rows = np.array([1, 20, 7])
    served = Served(world=world, phi=agent.phi)
    torch.testing.assert_close(agent.scores(rows), served.score_until(rows, world.split.end[rows]))
    assert not torch.allclose(
        agent.scores(rows), Served(world=world, phi=agent.phi, steps=0).score_until(rows, world.split.end[rows])
    )


def test_the_oracle_has_no_regret_and_popularity_beats_chance():
    world_of = lively(200)
    size, items = 3, world_of.population.items
    simulator = world_of.simulator()
    oracle = Session(simulator=simulator)
    oracle.play(OracleAgent(Journal(devices=200), simulator, size=size), np.arange(200), 6)
    assert np.abs(oracle.trace.values["regret"]).max() < 1e-12
    popular = played(world_of, PopularityAgent(Journal(devices=200), size, items=items, seed=0), steps=10)
    chance = played(world_of, RandomAgent(Journal(devices=200), Exploration(size=size), items=items, seed=0), steps=10)
    assert popular.trace.values["reward"].mean() > 1.3 * chance.trace.values["reward"].mean()


def test_popularity_counts_the_clicks_of_all_devices():
    world_of = users()
    agent = PopularityAgent(Journal(devices=24), 3, items=30, seed=0)
    played(world_of, agent, steps=5)
    np.testing.assert_array_equal(agent.counts, np.bincount(agent.journal.column("items"), minlength=30))
