"""The Python of the guide runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "users.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.data
@pytest.mark.parametrize("block", BLOCKS, ids=["act", "fit"])
def test_the_python_of_the_guide_runs(block, capsys):
    exec(block, {})
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    if "regret" in block:
        assert shown[1].endswith("True")
        assert shown[2] == "True"
