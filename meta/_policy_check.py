"""What a policy refuses: settings that leave nothing to learn, or that its catalogue does not carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import PolicyError
from . import state as encoders

if TYPE_CHECKING:
    from .policy import Policy


def check(policy: Policy) -> None:
    """Refuse what can't be, with one sentence.

    Raises:
        PolicyError: no term is left, a fast or frozen weight is not there, or the catalogue lacks what a term needs.
    """
    settings = policy.settings
    if not (settings.content or settings.ids or settings.bias):
        raise PolicyError("expected a policy with content, ids or bias, got none of them; switch one on")
    if settings.content and policy.features.shape[1] == 0:
        raise PolicyError("expected content features for policy.content, got a catalogue without; set it to false")
    if settings.affinity and not policy.kernel_names:
        raise PolicyError("expected content features for policy.affinity, got a catalogue without; set it to false")
    _check_kernels(policy)
    missing = [name for name in settings.fast if name not in policy.specs]
    if missing:
        switch = {"taste": "content", "gain": "bias", "affinity": "affinity", "latent": "ids"}[missing[0]]
        raise PolicyError(
            f"expected policy.{switch} for the fast weight {missing[0]}, got false; take it out of policy.fast"
        )
    if not policy.specs:
        raise PolicyError("expected a policy with parameters, got none; switch content, bias or a state encoder on")
    unknown = sorted(set(settings.frozen) - set(policy.names(scope="shared")))
    if unknown or not policy.released:
        shared = ", ".join(policy.names(scope="shared"))
        raise PolicyError(
            f"expected policy.frozen to name some of {shared} and to leave one to train, "
            f"got {', '.join(settings.frozen)}"
        )
    if settings.state != "none" and not policy.embeds:
        raise PolicyError(
            f"expected policy.ids or policy.content_embedding for the state encoder {settings.state}, got neither; "
            "switch one on or set policy.state to none"
        )


def _check_kernels(policy: Policy) -> None:
    settings = policy.settings
    if settings.affinity and settings.affinity_level and not (settings.bias and "bias" in settings.frozen):
        raise PolicyError(
            "expected the bias in policy.frozen for policy.affinity_level, whose kernel it makes, got it free; "
            "freeze it or set affinity_level to false"
        )
    strange = sorted(set(settings.affinity_start) - set(policy.kernel_names))
    if strange:
        there = ", ".join(policy.kernel_names) or "none"
        raise PolicyError(f"expected policy.affinity_start to name kernels among {there}, got {strange[0]}")
    for name, weights in settings.affinity_start.items():
        if len(weights) != len(encoders.SCALES):
            raise PolicyError(
                f"expected {len(encoders.SCALES)} weights in policy.affinity_start.{name}, one a recency scale, "
                f"got {len(weights)}"
            )
