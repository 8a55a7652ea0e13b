"""The guide is true: its Python runs, and it names every reason and every field there is."""

import re
from pathlib import Path

from fedrec.client.wire import TrainReply, encode_reply
from fedrec.server import gate

GUIDE = (Path(__file__).parents[2] / "docs" / "federation.md").read_text(encoding="utf-8")


def test_the_code_of_the_guide_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.startswith("3 rounds {'user': ")


def test_the_guide_names_every_reason_of_the_gate():
    source = Path(gate.__file__).read_text(encoding="utf-8")
    reasons = set(re.findall(r"_Rejected\(\s*\"([a-z-]+)\"", source))
    assert len(reasons) >= 11
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in GUIDE] == []


def test_the_guide_names_every_field_of_a_reply():
    fields = encode_reply(TrainReply(1, "s", "error", reason="OSError"))["fedrec"]
    assert [name for name in fields if f"`{name}`" not in GUIDE] == []
