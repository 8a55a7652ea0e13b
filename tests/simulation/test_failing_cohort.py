"""What becomes of a simulated run when a cohort can't do its work: it stops, and goes on as if nothing had been."""

import errno

import pytest
import small_world as small
from fedrec.errors import PolicyError, RunError
from fedrec.simulation.participant import Cohort, PersonalStore
from fedrec.simulation.run import simulate


def personal():
    return small.config(policy__state="personal", evaluation__baselines=False)


def failing_in(patch, owner, name, number, error):
    """Let ``owner.name`` raise when it is called for round ``number``."""
    working = getattr(owner, name)

    def broken(self, first, *rest):
        if getattr(first, "round", first) == number:
            raise error
        return working(self, first, *rest)

    patch.setattr(owner, name, broken)


def test_a_full_disk_of_a_cohort_stops_the_run_and_changes_nothing(tmp_path, monkeypatch):
    plain = simulate(personal(), out=tmp_path / "plain", dataset=small.dataset())
    with monkeypatch.context() as patch:
        failing_in(patch, PersonalStore, "save", 2, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(RunError, match=r"No space left.*the rounds before 2 are safe.*free some space and resume"):
            simulate(personal(), out=tmp_path / "run", dataset=small.dataset())
    resumed = simulate(out=tmp_path / "run", resume=True, dataset=small.dataset())
    assert small.same(resumed.policy(), plain.policy())
    assert small.rows_of(tmp_path / "run") == small.rows_of(tmp_path / "plain")


def test_any_other_failure_of_a_cohort_stops_the_run_too(tmp_path, monkeypatch):
    failing_in(monkeypatch, Cohort, "train", 3, PolicyError("expected this, got that"))
    with pytest.raises(PolicyError, match="expected this, got that"):
        simulate(personal(), out=tmp_path / "run", dataset=small.dataset())
    assert [row["round"] for row in small.rows_of(tmp_path / "run")] == [1, 2]
