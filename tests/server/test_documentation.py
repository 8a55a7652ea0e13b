"""The guides are true: their Python runs, and they name every reason and every field there is."""

import re
from pathlib import Path

import numpy as np
import torch
from fedrec.client.compression import pack
from fedrec.client.wire import TrainOrder, TrainReply, encode_order, encode_reply
from fedrec.server import gate

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "federation.md").read_text(encoding="utf-8")
WIRE = (DOCS / "wire.md").read_text(encoding="utf-8")


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


def test_the_page_names_every_field_of_order_and_reply():
    update = {"w": torch.ones(2)}
    packed = pack(update, "int8", None)
    one = np.zeros(1, dtype=np.int64)
    messages = (
        encode_order(TrainOrder(1, update, "s", one, "r", clip=1.0, stacked=True, encoding="int8")),
        encode_reply(TrainReply(1, "s", "error", reason="OSError")),
        encode_reply(TrainReply(1, "s", update=packed.stack().unpack(), devices=1, rows=one, packed=packed.stack())),
        encode_reply(TrainReply(1, "s", update=update, devices=1, unclipped=1)),
    )
    parts = re.split(r"^## ", WIRE, flags=re.MULTILINE)
    (order,), (reply,) = ([part for part in parts if part.startswith(f"The {kind}")] for kind in ("order", "reply"))
    for message, text in zip(messages, (order, reply, reply, reply), strict=True):
        named = [*message["fedrec"], *(f"record `{name}" for name in message if name != "fedrec")]
        assert [name for name in named if f"`{name.removeprefix('record `')}`" not in text] == []
