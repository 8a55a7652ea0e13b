"""``fedrec bundle`` in the terminal; the commands of the guide run in tests/test_docs.py."""

import json
from pathlib import Path

import pytest
from fedrec.cli import invoke

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "bundle.md"


@pytest.fixture
def made(command_line, small_settings, capsys):
    """A run, two keys, a signed bundle and an unsigned one that follows it."""
    quick = [*small_settings, "--set", "server.rounds=2"]
    for arguments in (
        ["simulate", *quick, "--out", "run", "-q"],
        ["bundle", "keygen", "release.key"],
        ["bundle", "keygen", "other.key"],
        ["bundle", "make", "run", "--out", "first.bundle", "--key", "release.key"],
        ["bundle", "make", "run", "--out", "second.bundle", "--parent", "first.bundle", "--int8"],
    ):
        assert invoke(arguments) == 0, capsys.readouterr().err
    capsys.readouterr()
    return command_line


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_a_bundle_from_run_to_device(made, capsys):
    assert invoke(["bundle", "verify", "first.bundle", "--key", "release.key.pub"]) == 0
    assert "version 1, signed by" in capsys.readouterr().out
    assert invoke(["bundle", "show", "second.bundle", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["version"], facts["weights"], facts["signer"]) == (2, "int8", "")
    assert 0 < facts["score_error"]["largest"] < 1
    assert facts["privacy"][0]["sentence"].startswith(
        "epsilon = 8 at delta = 1e-05, unit user (add or remove one device"
    )
    assert invoke(["bundle", "show", "second.bundle"]) == 0
    shown = capsys.readouterr().out
    assert "simulation only: the noise was seeded" in " ".join(shown.split())
    assert f"2, after {json.loads(_facts('first.bundle', capsys))['digest'][:16]}" in shown
    code = "".join(block.split("```")[0] for block in GUIDE.read_text().split("```python\n")[1:])
    unsigned = Path("second.bundle").read_bytes()
    assert invoke(["bundle", "sign", "second.bundle", "--key", "release.key"]) == 0
    capsys.readouterr()
    exec(code, {})
    bundle, version, served = capsys.readouterr().out.splitlines()
    assert bundle.startswith("1 150 items ['epsilon = 8 at")
    assert (version, served) == ("2", "1")
    Path("second.bundle").write_bytes(unsigned)
    assert invoke(["bundle", "export", "first.bundle", "--onnx", "policy.onnx"]) == 0
    assert "of PyTorch's" in capsys.readouterr().out
    for arguments, sentence in WRONG:
        assert invoke(["bundle", *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert sentence in " ".join(error.split()), (arguments, error)
        assert "Traceback" not in error


def _facts(name, capsys):
    capsys.readouterr()
    assert invoke(["bundle", "show", name, "--json"]) == 0
    return capsys.readouterr().out


WRONG = [
    (["verify", "second.bundle", "--key", "release.key.pub"], "expected a signed bundle"),
    (["verify", "first.bundle", "--key", "other.key.pub"], "got one signed by"),
    (["verify", "first.bundle", "--key", "release.key"], "expected an ed25519 public key"),
    (["verify", "first.bundle"], "Missing option"),
    (["verify", "none.bundle", "--key", "release.key.pub"], "check the path"),
    (["show", "run"], "no plain file"),
    (["show", "policy.onnx"], "does not begin like one"),
    (["sign", "first.bundle", "--key", "release.key.pub"], "expected an ed25519 private key"),
    (["keygen", "release.key"], "a key is never replaced"),
    (["keygen", "none/key"], "choose another path"),
    (["make", "nowhere", "--out", "x.bundle"], "expected a run directory"),
    (["make", "run", "--out", "none/x.bundle"], "choose another path"),
    (
        ["make", "run", "--out", "x.bundle", "--parent", "first.bundle", "--version", "1"],
        "above 1, the parent's, got 1",
    ),
    (["make", "run", "--out", "x.bundle", "--version", "0"], "0 is not in the range"),
    (["export", "first.bundle", "--onnx", "x.onnx", "--key", "other.key.pub"], "got one signed by"),
]
