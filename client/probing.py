"""Random states to ask a policy about, where two forms of it are compared: exported, quantized."""

from __future__ import annotations

import torch

from ..meta.policy import LEVELS, Named, Parameters, Policy, State

SAMPLES = 16
"""States that are asked about."""


def random_states(policy: Policy, generator: torch.Generator) -> State:
    """States with random histories of all lengths, an empty and a full one among them: ``[16, history_length]``."""
    length = policy.settings.history_length
    history = torch.randint(0, policy.items, (SAMPLES, length), generator=generator)
    known = torch.randint(0, length + 1, (SAMPLES,), generator=generator)
    known[0], known[1] = 0, length
    there = torch.arange(length - 1, -1, -1) < known[:, None]
    levels = torch.randint(0, LEVELS, (SAMPLES, length), generator=generator)
    user = torch.randn(policy.user_width, generator=generator)
    return State(torch.where(there, history, -1), torch.where(there, levels, 0), user)


def with_personal(policy: Policy, parameters: Parameters) -> Named:
    """The parameters, personal ones zero where they are missing: a device before its first adaptation."""
    personal = {name: torch.zeros(policy.specs[name].shape) for name in policy.names(scope="personal")}
    return {name: value.detach() for name, value in {**personal, **parameters}.items()}
