"""A whole run with learned rates: they leave their neutral start and stay in their bounds."""

import math

import small_world
import torch
from fedrec.simulation.run import Run, simulate


def test_a_run_learns_rates_that_its_devices_step_by(tmp_path):
    changes = {"policy__learned_rates": True, "policy__fast": ("taste",), "evaluation__baselines": False}
    changes |= {
        "server__rounds": 4,
        "evaluation__every": 4,
    }  # the first round is the warm start, one update tells nothing
    run = simulate(small_world.config(**changes), out=tmp_path / "run", dataset=small_world.dataset())
    rates = Run.open(run.directory).policy()["rate.taste"]
    assert bool((rates != 0).any())
    assert bool((rates.abs() <= math.log(4) + 1e-6).all())
    plain = simulate(
        small_world.config(**changes | {"policy__learned_rates": False}),
        out=tmp_path / "plain",
        dataset=small_world.dataset(),
    )
    assert "rate.taste" not in plain.policy()
    assert not torch.equal(plain.policy()["taste"], run.policy()["taste"])
