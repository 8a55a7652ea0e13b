"""``fedrec deploy init``: the folder is one that Flower takes, and what is wrong is said before it is written."""

import sys
import tomllib
from pathlib import Path

import pytest
from fedrec.cli import invoke
from fedrec.server.deployment import Deployment
from flwr.cli.config_utils import load_and_validate

sys.path[:0] = [str(Path(__file__).parent / room) for room in ("server", "simulation")]

import deployed_world as deployed  # noqa: E402

pytestmark = pytest.mark.usefixtures("command_line")


def init(root, *more):
    arguments = ["--bundle", "policy.bundle", "--key", "maker.pub", "--out", "run", "--population", "3"]
    return invoke(["deploy", "init", str(root / "app"), *arguments, *more])


def test_the_folder_is_one_that_flower_takes(tmp_path, capsys):
    federation = deployed.deployment(tmp_path)
    assert init(tmp_path, "--nodes", "3", "--deadline", "100") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 rounds over 3 devices, from version 1 of the policy" in shown
    assert "unit user (add or remove one device (zero-out))" in shown
    assert "unit interaction" in shown
    assert "seeded" not in shown
    config, warnings = load_and_validate(tmp_path / "app" / "pyproject.toml")
    assert warnings == []
    assert config["project"]["dependencies"] == []
    written = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert Deployment.of(written["config"]) == federation
    assert written["components"] == {
        "serverapp": "fedrec.server.deployment:server_app",
        "clientapp": "fedrec.client.node:client_app",
    }


def test_a_folder_is_not_written_over(tmp_path, capsys):
    deployed.deployment(tmp_path)
    assert init(tmp_path) == 0
    before = (tmp_path / "app" / "pyproject.toml").read_bytes()
    assert init(tmp_path, "--nodes", "2") == 2
    assert "expected no file at" in capsys.readouterr().err
    assert (tmp_path / "app" / "pyproject.toml").read_bytes() == before


def test_a_file_is_no_folder_for_an_app(tmp_path, capsys):
    deployed.deployment(tmp_path)
    (tmp_path / "app").write_text("mine")
    assert init(tmp_path) == 2
    assert "app, or nothing yet, got a file" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "app").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--population", "1"], "expected fedrec-population to be an integer >= 2, got 1"),
        (["--key", "maker"], "expected an ed25519 public key in"),
        (["--bundle", "maker"], "expected a fedrec policy bundle"),
        (["--out", "maker"], "expected a folder at maker, or nothing yet, got a file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, capsys, more, sentence):
    deployed.deployment(tmp_path)
    assert init(tmp_path, *more) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "app").exists()
