"""Five worlds to recommend in, each with its items, users, reward and behaviour; what they share means the same.

``domain_world`` draws one, ``logged_dataset`` lets a known logging policy act in it and keeps the log.
"""

from __future__ import annotations

from .draw import DomainWorld, domain_world
from .log import logged_dataset
from .registry import DOMAINS
from .schema import Domain, Label, Measure

__all__ = ["DOMAINS", "Domain", "DomainWorld", "Label", "Measure", "domain_world", "logged_dataset"]
