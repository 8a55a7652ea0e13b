from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture(scope="session")
def obp():
    """What the Open Bandit Pipeline itself estimates; made by benchmarks/peers/obp/reference.py."""
    return json.loads((Path(__file__).parent / "obp.json").read_text(encoding="utf-8"))
