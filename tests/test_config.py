"""One schema for files, overrides and Flower's run config: every way in gives the same configuration, or a sentence."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fedrec._cli.keys import known_keys, markdown
from fedrec.config import Config, load_config
from fedrec.errors import ConfigError, FedrecError
from hypothesis import given
from hypothesis import strategies as st

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

ODD = {
    "seed": 7,
    "data": {"name": 'odd "name"', "positive_threshold": 4.0},
    "policy": {"fast": ["taste", "gain"]},
    "local": {"rates": {"item.bias": 0.1, "taste": 2.5}},
    "privacy": {"epsilon": None, "noise_multiplier": 1.5, "delta": 1e-7},
    "server": {"deadline": 2.5, "patience": 3},
    "evaluation": {"ks": [1, 10]},
    "engine": {"chunk": 8},
}


def test_defaults_are_private_and_load_from_nothing():
    assert load_config() == Config()
    assert Config().privacy.unit == "user"
    assert Config().privacy.epsilon is not None


@pytest.mark.parametrize("values", [{}, ODD])
def test_toml_round_trip(values, tmp_path):
    config = Config.from_mapping(values)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize("values", [{}, ODD])
def test_flat_round_trip_as_flower_carries_it(values):
    config = Config.from_mapping(values)
    flat = config.flat()
    assert all(isinstance(value, (bool, int, float, str)) for value in flat.values())
    assert Config.from_flat(flat) == config


numbers = st.floats(min_value=1e-9, max_value=1e9)


@given(seed=st.integers(0, 2**63), clip=numbers, rates=st.dictionaries(st.text(min_size=1), numbers, max_size=3))
def test_any_numbers_and_names_survive_both_round_trips(seed, clip, rates):
    config = Config.from_mapping({"seed": seed, "privacy": {"clip": clip}, "local": {"rates": rates}})
    assert Config.from_mapping(tomllib.loads(config.to_toml())) == config
    assert Config.from_flat(config.flat()) == config


def test_overrides_win_over_the_file_and_are_toml_or_bare_words(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[privacy]\nepsilon = 4\nclip = 0.25\n[evaluation]\nks = [10]\n", encoding="utf-8")
    config = load_config(path, ["privacy.epsilon=2", "evaluation.ks=[1, 10]", "policy.state=gru", "privacy.scales.a=3"])
    assert (config.privacy.epsilon, config.privacy.clip) == (2.0, 0.25)
    assert config.evaluation.ks == (1, 10)
    assert config.policy.state == "gru"
    assert config.privacy.scales == {"a": 3.0}
    assert load_config(None, ["privacy.epsilon=none", "privacy.noise_multiplier=1"]).privacy.epsilon is None


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("privacy.epsilom=2", "unknown configuration key privacy.epsilom; did you mean privacy.epsilon?"),
        ("privacy.epsilon=-1", "expected privacy.epsilon > 0, got -1"),
        ("privacy.epsilon=0", "expected privacy.epsilon > 0, got 0"),
        ("privacy.clip=0", "expected privacy.clip > 0, got 0"),
        ("privacy.clip=nan", "expected privacy.clip"),
        (
            "privacy.unit=users",
            "expected privacy.unit to be one of 'none', 'interaction', 'user' or 'both', got 'users'",
        ),
        ("local.steps=0", "expected local.steps >= 1, got 0"),
        ("server.rounds=1", "expected server.rounds >= 2 with a warm start, got 1"),
        ("server.rounds=many", "expected server.rounds to be an integer, got 'many'"),
        ("privacy.noise_multiplier=1", "expected exactly one of privacy.epsilon and privacy.noise_multiplier"),
        ("evaluation.ks=[ten]", "got '[ten]'"),
        ("seed", "expected --set key=value, got 'seed'"),
        ("seed.x=1", "seed"),
    ],
)
def test_a_wrong_override_gets_a_sentence(override, sentence):
    with pytest.raises(ConfigError) as raised:
        load_config(None, [override])
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_no_toml_gets_a_sentence(tmp_path):
    with pytest.raises(FedrecError, match=r"expected a readable TOML file at .*No such file"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 1")
    with pytest.raises(FedrecError, match=r"expected TOML in .*broken\.toml"):
        load_config(broken)


def test_only_what_may_change_a_result_is_in_the_fingerprint():
    config = Config()
    assert config.updated(engine__chunk=1, engine__threads=2).fingerprint() == config.fingerprint()
    for key, value in (("seed", 1), ("privacy__clip", 0.1), ("evaluation__every", 1), ("data__name", "ml-1m")):
        assert config.updated(**{key: value}).fingerprint() != config.fingerprint()


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1


def test_the_fingerprint_is_the_same_in_another_process():
    code = "from fedrec.config import Config; print(Config().fingerprint())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Config().fingerprint()


def test_every_key_says_what_it_means():
    keys = known_keys()
    assert [key.name for key in keys] == list(Config().flat())
    assert [key.name for key in keys if not (key.meaning.endswith(".") and key.kind)] == []


def test_defaults_in_the_list_of_keys_are_the_defaults():
    listed = {key.name: key.default for key in known_keys()}
    assert Config.from_flat(listed | {"seed": int(listed["seed"])}) == Config()


def test_the_guide_is_in_step_with_the_schema():
    assert GUIDE.read_text(encoding="utf-8") == markdown(), "run: fedrec config keys --markdown > docs/configuration.md"


PAIRS = {"policy__affinity": True, "policy__pairs": 4, "server__warm_pairs": 20, "server__rounds": 5}


def test_pairs_have_a_round_of_their_own():
    config = Config().updated(**PAIRS)
    assert [config.phase(number) for number in (1, 2, 3)] == ["popularity", "pairs", "adapt"]
    assert config.adapt_rounds == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy__pairs": 0}, "expected server.warm_pairs and policy.pairs both above 0 or both 0, got 20 and 0"),
        ({"policy__affinity": False}, "expected server.warm_start = popularity and policy.affinity = true"),
        ({"server__warm_start": "none"}, "expected server.warm_start = popularity and policy.affinity = true"),
        ({"privacy__unit": "interaction"}, "expected server.warm_pairs = 0 under unit interaction"),
        ({"privacy__unit": "both"}, "expected server.warm_pairs = 0 under unit both"),
        ({"privacy__warm_share": 0.8}, "expected privacy.warm_share \\+ privacy.pairs_share < 1, got 0.8 \\+ 0.2"),
        ({"server__rounds": 2}, "expected server.rounds >= 3 with a warm start, got 2"),
    ],
)
def test_pairs_that_can_not_be_are_told(changes, message):
    with pytest.raises(ConfigError, match=message):
        Config().updated(**(PAIRS | changes))
