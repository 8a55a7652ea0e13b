"""The domains by name."""

from __future__ import annotations

from .music import MUSIC
from .news import NEWS
from .schema import Domain
from .shop import SHOP
from .social import SOCIAL
from .video import VIDEO

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (SHOP, VIDEO, NEWS, MUSIC, SOCIAL)}
