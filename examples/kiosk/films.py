"""Titles for films that do not exist: the synthetic world numbers its items, and a wall of numbers is no cinema."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

_NOUNS = {
    "Action": ("Overdrive", "Last Exit", "Firewall", "Getaway", "Countdown", "Red Line"),
    "Adventure": ("Atlas", "Far Shore", "Compass", "Northern Passage", "Lost River", "Expedition"),
    "Animation": ("Paper Moon", "Tin Robot", "Cloud Factory", "Little Whale", "Pencil", "Bumblebee"),
    "Comedy": ("Wedding", "Neighbours", "Wrong Suitcase", "Cousins", "Monday Club", "Parrot"),
    "Crime": ("Alibi", "Silent Partner", "Safe", "Night Shift", "Forger", "Eleventh Witness"),
    "Documentary": ("Harvest", "Glacier", "Beekeepers", "Harbour", "Railway", "Coral"),
    "Drama": ("Orchard", "Letters", "Winter House", "Quiet Year", "Daughters", "Piano Teacher"),
    "Fantasy": ("Dragon", "Lantern Keeper", "Raven King", "Glass Forest", "Spellbook", "Moon Gate"),
    "History": ("Empire", "Cartographer", "Siege", "Armada", "Cathedral", "Abdication"),
    "Horror": ("Cellar", "Whisper", "Hollow", "Thirteenth Room", "Scarecrow", "Midnight Guest"),
    "Musical": ("Encore", "Tap Shoes", "Broadway Lights", "Serenade", "Big Band", "Chorus Line-up"),
    "Mystery": ("Locked Door", "Cipher", "Vanishing", "Blue Envelope", "Lighthouse", "Missing Hour"),
}
_ADJECTIVES = ("Last", "Golden", "Hidden", "Crimson", "Forgotten", "Endless", "Electric", "Broken", "Secret", "Second")
_PLACES = ("Lisbon", "Oslo", "Havana", "Marrakesh", "Kyoto", "Trieste", "Valparaíso", "Bergen", "Odessa", "Cork")
_PATTERNS = ("The {adjective} {noun}", "{noun}", "{adjective} {noun}", "The {noun} of {place}", "{noun} in {place}")
_NAMED_WITH_ITS_YEAR = re.compile(r"(?P<name>.+?)\s*\((?P<year>\d{4})\)$")


def titles(genres: Sequence[Sequence[str]], seed: int = 0) -> list[str]:
    """One title an item, in the spirit of its genres; no two alike.

    Args:
        genres: of every item.
        seed: equal seeds give equal titles.
    """
    draw = random.Random(seed)
    found: set[str] = set()
    return [_unused(draw, own, found) for own in genres]


def _unused(draw: random.Random, genres: Sequence[str], found: set[str]) -> str:
    nouns = [noun for genre in genres for noun in _NOUNS.get(genre, ())] or ["Untitled"]
    tries = [_title(draw, nouns) for _ in range(20)]
    sequels = (f"{tries[0]} {number}" for number in itertools.count(2))
    title = next(title for title in itertools.chain(tries, sequels) if title not in found)
    found.add(title)
    return title


def _title(draw: random.Random, nouns: Sequence[str]) -> str:
    pattern = draw.choice(_PATTERNS)
    return pattern.format(adjective=draw.choice(_ADJECTIVES), noun=draw.choice(nouns), place=draw.choice(_PLACES))


def name_and_year(title: str) -> tuple[str, str]:
    """A title apart from the year that it ends in; "Usual Suspects, The (1995)" becomes "The Usual Suspects"."""
    found = _NAMED_WITH_ITS_YEAR.match(title)
    name, year = (found["name"], found["year"]) if found else (title, "")
    head, comma, article = name.rpartition(", ")
    return (f"{article} {head}" if comma and article in ("The", "A", "An") else name), year
