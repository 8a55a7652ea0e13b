"""Planted bugs: the real mechanisms, patched in place with pytest's monkeypatch. No product code knows of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from fedrec._streams import numpy_stream
from fedrec.client import adaptation
from fedrec.config import LocalConfig
from fedrec.meta.descent import descend_stack
from fedrec.meta.reptile import mean_update, reptile_step
from fedrec.meta.stacked import Stack
from fedrec.server import budget, roster, strategy
from fedrec.simulation import batches, cohort

_noise, _account = strategy.gaussian_sum_noise, budget.epsilon
_plainly, _privately = cohort._adapt_plainly, cohort._adapt_privately


def server_noise_divided(patch, by):
    """The server adds a ``by``-th of the noise (none for infinity)."""
    patch.setattr(strategy, "gaussian_sum_noise", lambda total, bound, z, noise: _noise(total, bound, z / by, noise))


def device_noise_divided(patch, by):
    """The device adds a ``by``-th of the noise."""
    patch.setattr(
        adaptation.LocalMechanism, "noise_over_clip", property(lambda self: self.noise_multiplier * self.changes / by)
    )


def update_clip_off(patch):
    """Devices send their whole update."""
    patch.setattr(cohort, "_bounded", lambda squares, bound: torch.ones_like(squares))


def example_clip_off(patch):
    """Examples pull as hard as they like."""
    patch.setattr(cohort, "example_clip_factors", lambda norms, clip: torch.ones_like(norms))


def divisor_of_examples(patch):
    """A step divides by the number of examples that the device has."""

    def adapted(chunk):
        count = float(chunk.examples.present[0].sum())
        return _privately(replace(chunk, mechanism=replace(chunk.mechanism, expected_batch=count)))

    patch.setattr(cohort, "_adapt_privately", adapted)


def divisor_of_participants(patch):
    """The server divides by the number of devices that answered."""

    def folded(self, server_round, released):
        mean = mean_update(released, max(1, self.verdict.devices))
        moved, self.outer = reptile_step(
            self._plan.asked(self._config, server_round, self._phi), mean, self.outer, self._config.server, server_round
        )
        return {**self._phi, **moved}

    patch.setattr(strategy.MetaStrategy, "_folded", folded)


def personal_vector_without_noise(patch):
    """The personal vector is fitted first, without noise; then DP-SGD starts from it."""

    def adapted(chunk):
        if "personal" not in chunk.policy.specs:
            return _privately(chunk)
        greedy = LocalConfig(lr=1000.0)
        stack = Stack(shared=chunk.shared, examples=chunk.examples, settings=greedy)
        fitted = descend_stack(stack, {**chunk.phi, **chunk.personal}, steps=1, names=("personal",))
        return _privately(replace(chunk, personal={**chunk.personal, **fitted}))

    patch.setattr(cohort, "_adapt_privately", adapted)


def overlapping_windows(patch):
    """Examples are cut as under unit ``user``: an entry stands in the history of all that follow."""

    def blocks(dataset, starts, counts, settings, length):
        rows = np.arange(int(counts.max()) - settings.windows, int(counts.max()))[None]
        return batches._around(rows, counts, settings.horizon, length)

    patch.setattr(batches, "_blocks", blocks)


def accountant_reset(patch):
    """Every round starts a new accountant, which knows of that round only."""
    patch.setattr(budget, "epsilon", lambda charges, delta, accountant: _account(charges[-1:], delta, accountant))


def weighted_by_interactions(patch):
    """A device counts as often as the average device has interactions."""

    def adapted(chunk):
        counts = (chunk.examples.targets >= 0).sum((1, 2)).double()
        weights = (counts / MEAN_INTERACTIONS).tolist()
        parts = [_plainly(chunk.only(np.array([row]))) for row in range(len(weights))]
        total = {
            name: sum(weight * part.total[name] for weight, part in zip(weights, parts, strict=True))
            for name in parts[0].total
        }
        return replace(_plainly(chunk), total=total)

    patch.setattr(cohort, "_adapt_plainly", adapted)


MEAN_INTERACTIONS = 10
"""Of a federation in which canary devices log more than the others."""


def fixed_size_sample(patch):
    """As many devices as Poisson sampling draws on average are drawn from those that are there."""

    def assign(self, devices, node_ids):
        nodes, drawn = sorted(set(node_ids)), fixed.integers(1 << 62)
        count = min(len(nodes), self.population // 2)
        chosen = numpy_stream(int(drawn), "sample").choice(len(nodes), count, replace=False)
        return {nodes[index]: np.array([index]) for index in sorted(chosen.tolist())}

    fixed = numpy_stream(0, "fixed-size sample")
    patch.setattr(roster.Roster, "assign", assign)
