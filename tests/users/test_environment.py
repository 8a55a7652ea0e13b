"""The Gymnasium environments: the checker, one against many, streams, and an agent that learns."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from fedrec.errors import DataError
from fedrec.simulation.users import ID, UserOptions, UsersEnv, UsersVectorEnv
from gymnasium.utils.env_checker import check_env

SMALL = {"users": 12, "items": 30}
EVERYTHING = {"drift": 0.1, "fatigue": 1.0, "familiarity": 0.5, "satiation": 0.2, "noise": 0.1, "outliers": 0.3}


@pytest.mark.parametrize("world", ["shop", "news", "music"])
def test_gymnasium_finds_nothing_wrong(world):
    check_env(gymnasium.make(ID, world=world, **SMALL).unwrapped)


def test_gymnasium_finds_nothing_wrong_without_user_features(make_population):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*alternative render modes")  # needs a name in the registry
        check_env(UsersEnv(make_population(), UserOptions(slate=2, **EVERYTHING)))


def test_a_vector_of_the_registry_is_the_fast_one():
    many = gymnasium.make_vec(ID, num_envs=5, vectorization_mode="vector_entry_point", world="video", **SMALL)
    assert isinstance(many.unwrapped, UsersVectorEnv)
    seen, _ = many.reset(seed=1)
    assert many.observation_space.contains(seen)
    seen, reward, ended, cut, _ = many.step(many.action_space.sample())
    assert many.observation_space.contains(seen)
    assert (reward.shape, ended.shape, cut.shape) == ((5,), (5,), (5,))


@pytest.mark.parametrize("choice", ["logit", "position", "cascade"])
def test_one_at_a_time_and_all_at_once_are_the_same_bits(make_population, choice):
    population = make_population(7, 9, latent=5)
    options = UserOptions(choice=choice, slate=3, horizon=4, shift_at=2, **EVERYTHING)
    many = UsersVectorEnv(population, options)
    alone = [UsersEnv(population, options, user=user) for user in range(7)]
    both = [many.reset(seed=11)[0], [env.reset(seed=11)[0] for env in alone]]
    random = np.random.default_rng(0)
    for step in range(10):
        for name in both[0]:
            assert (both[0][name] == np.stack([seen[name] for seen in both[1]])).all(), name
        slates = random.integers(0, 9, (7, 3))
        if step in (4, 9):  # the vector begins the next episode by itself, whatever the action
            both = [many.step(slates)[0], [env.reset()[0] for env in alone]]
            continue
        assert (many.oracle() == np.stack([env.oracle() for env in alone])).all()
        seen, reward, _, cut, told = many.step(slates)
        results = [env.step(slate) for env, slate in zip(alone, slates, strict=True)]
        assert reward.tolist() == [result[1] for result in results]
        assert cut.tolist() == [result[3] for result in results] == [step in (3, 8)] * 7
        for key in ("clicks", "stages", "expected_reward", "regret"):
            assert (told[key] == np.stack([result[4][key] for result in results])).all(), key
        both = [seen, [result[0] for result in results]]


def rewards_of(env, seed, steps=30):
    env.reset(seed=seed)
    return [env.step(np.arange(5))[1] for _ in range(steps)]


def test_a_seed_is_a_stream_and_episodes_go_on_with_it():
    env = UsersEnv("shop", UserOptions(horizon=30), user=3, **SMALL)
    assert rewards_of(env, 1) == rewards_of(env, 1)
    first = rewards_of(env, 1, 60)
    env.reset()
    second = [env.step(np.arange(5))[1] for _ in range(60)]
    assert first != second
    assert rewards_of(env, 2, 60) != first


def test_who_is_asked_can_be_chosen_or_is_drawn():
    env = UsersEnv("shop", **SMALL)
    assert env.reset(options={"user": 7})[1]["user"] == 7
    drawn = [env.reset()[1]["user"] for _ in range(40)]
    assert len(set(drawn)) > 5
    first = env.reset(seed=5)[1]["user"]
    assert env.reset(seed=5)[1]["user"] == first


def test_copies_of_a_user_do_not_click_in_step(make_population):
    many = UsersVectorEnv(make_population(2, 8, level=0.0), UserOptions(slate=2), num_envs=64)
    many.reset(seed=0)
    clicks = many.step(np.tile([0, 1], (64, 1)))[4]["clicks"].any(axis=1)
    assert 0 < clicks[::2].sum() < 32


def test_the_observation_is_what_was_shown_and_what_it_brought(make_population):
    env = UsersEnv(make_population(), UserOptions(slate=2, history=5), user=1)
    seen, _ = env.reset(seed=0)
    assert seen["items"].tolist() == [-1] * 5
    brought = [env.step(np.array(slate))[4]["clicks"].tolist() for slate in ([0, 1], [2, 3], [4, 5])]
    seen = env.step(np.array([6, 7]))
    shown, told = seen[0], seen[4]
    assert shown["items"].tolist() == [3, 4, 5, 6, 7]
    assert shown["rewards"].tolist() == [
        *map(float, brought[1][1:]),
        *map(float, brought[2]),
        *map(float, told["clicks"]),
    ]
    assert shown["time"] == 4


def test_the_last_slate_can_be_read(make_population):
    env = UsersEnv(make_population(level=40.0), UserOptions(slate=2), user=1, render_mode="ansi")
    env.reset(seed=0)
    env.step(np.array([3, 3]))
    assert env.render() == "user 1: 3 [click] | 3"


def test_without_regret_none_is_told(make_population):
    env = UsersEnv(make_population(), UserOptions(slate=2, track_regret=False), user=0)
    env.reset()
    assert not {"regret", "best_reward"} & set(env.step(np.array([0, 1]))[4])


def test_a_population_brings_its_own_sizes(make_population):
    with pytest.raises(DataError, match="expected no items beside a population"):
        UsersEnv(make_population(), items=5)


class Reinforce:
    """REINFORCE with a baseline: a softmax over items for each user; knows nothing but spaces and rewards."""

    def __init__(self, users, items, rate=1.0):
        self.logits, self.baseline = np.zeros((users, items)), np.zeros(users)
        self.random, self.rate = np.random.default_rng(0), rate

    def act(self):
        noisy = self.logits + self.random.gumbel(size=self.logits.shape)
        return noisy.argmax(axis=1)[:, None]

    def learn(self, actions, rewards):
        weights = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        policy = weights / weights.sum(axis=1, keepdims=True)
        score = -policy
        score[np.arange(len(policy)), actions[:, 0]] += 1
        self.logits += self.rate * (rewards - self.baseline)[:, None] * score
        self.baseline += 0.05 * (rewards - self.baseline)


def test_an_agent_learns_through_the_standard_interface(make_population):
    """REINFORCE beats random and comes within a tenth of the way to the best slate, by rewards and by regret."""
    options = UserOptions(slate=1, horizon=1000)
    many = UsersVectorEnv(make_population(150, 8, level=-1.5, strength=1.5, seed=4), options)
    agent = Reinforce(many.num_envs, int(many.single_action_space.nvec[0]))
    many.reset(seed=0)
    kept = []
    for _ in range(700):
        actions = agent.act()
        _, rewards, _, _, told = many.step(actions)
        agent.learn(actions, rewards)
        kept.append((rewards.mean(), told["best_reward"].mean(), told["regret"].mean()))
    begin, end = np.array(kept[:20]).mean(axis=0), np.array(kept[-100:]).mean(axis=0)
    best = end[1]
    assert end[0] > begin[0] + 0.8 * (best - begin[0])
    assert end[2] < 0.2 * begin[2]
