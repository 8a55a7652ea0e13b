"""The app folder of Flower's engines is in step with the schema and says nothing of a machine."""

import tomllib
from pathlib import Path

import pytest
from fedrec._cli.flower import flower_app
from fedrec.cli import invoke
from fedrec.config import Config
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import flatten_dict, fuse_dicts

FOLDER = Path(__file__).resolve().parents[2] / "simulation" / "flower"
OWN = {"fedrec-run-dir": "", "fedrec-resume": False}


def run_config(text):
    """What Flower makes of the defaults of an app."""
    return flatten_dict(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])


def test_the_folder_is_in_step_with_the_schema(capsys):
    """Its two nodes are as many as Flower simulates unless told otherwise."""
    assert invoke(["config", "flower", "--set", "server.nodes=2"]) == 0
    text = (FOLDER / "pyproject.toml").read_text(encoding="utf-8")
    assert text == capsys.readouterr().out, "run: make docs"
    assert run_config(text) == Config().updated(server__nodes=2).flat() | OWN


def test_flower_takes_the_folder():
    config, warnings = load_and_validate(FOLDER / "pyproject.toml")
    assert warnings == []
    assert config["project"]["dependencies"] == []
    assert [path.name for path in FOLDER.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy__scales": {"bias": 0.1, "ids": 1e-7}, "evaluation__ks": [3], "privacy__unit": "both"},
        {"policy__fast": ["taste", "gain"], "server__deadline": 1e16, "data__name": 'it\'s "mine" \\ \n ü \x7f'},
    ],
)
def test_a_configuration_comes_back_from_its_app(changes):
    config = Config().updated(**changes)
    found = run_config(flower_app(config))
    assert Config.from_flat({key: value for key, value in found.items() if key not in OWN}) == config


def test_flower_refuses_to_override_what_is_not_there():
    """Why the folder lists every key."""
    with pytest.raises(ValueError, match=r"'server\.round' is not present"):
        fuse_dicts(run_config(flower_app(Config())), {"server.round": 3})
