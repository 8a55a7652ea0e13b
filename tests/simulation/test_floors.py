"""Published and independently measured floors on real data, and the guide's own code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fedrec.simulation.baselines import dp_popularity, popularity
from fedrec.simulation.ceilings import LinearScores, ease, history_matrix
from fedrec.simulation.data.registry import load
from fedrec.simulation.data.split import leave_two_out, sample_negatives
from fedrec.simulation.evaluation import evaluate_scores

GUIDE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.data
def test_floors_and_ceilings_of_ml_100k():
    """Leave-one-out by time, 99 negatives, HR@10 / NDCG@10, measured elsewhere with other code: popularity 0.406 /
    0.227, EASE 0.662 / 0.393. The draw of negatives moves them by about 0.01."""
    data = load("ml-100k", progress=lambda _: None)
    split = leave_two_out(data)
    negatives = sample_negatives(data, split, 99, seed=0).test
    weights = ease(history_matrix(data, split))
    scorers = {
        (0.406, 0.227): popularity(data, split),
        (0.662, 0.393): LinearScores(history_matrix(data, split, "test"), weights),
        (0.41, 0.23): dp_popularity(data, split, epsilon=8.0, delta=1e-5, unit="user", seed=0).scores,
    }
    for (hits, ndcg), scorer in scorers.items():
        found = evaluate_scores(scorer, data, split, negatives=negatives, resamples=100)
        assert found.counted == 943
        assert found.aggregate["hr@10"].mean == pytest.approx(hits, abs=0.035)
        assert found.aggregate["ndcg@10"].mean == pytest.approx(ndcg, abs=0.02)


def test_the_code_of_the_guide_runs(capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})
    printed = capsys.readouterr().out
    assert "full ranking over 150 items" in printed
    assert "99 sampled negatives (not comparable with full ranking)" in printed
