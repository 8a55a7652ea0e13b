"""docs/deploy.md as steps: files to save, commands that end, services that stay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"
SERVICES = ("flower-superlink", "flower-supernode")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"# (\S+)\n")


@dataclass(frozen=True)
class File:
    """A block that begins with a comment that names it."""

    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A line of a ``sh`` block, continued lines joined."""

    line: str

    @property
    def stays(self) -> bool:
        """Whether it is a service."""
        return self.line.startswith(SERVICES)


def sections() -> dict[str, list[File | Command]]:
    """Heading -> its steps, in order; every block of the page is one or more of them."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {heading: _steps(body) for heading, body in zip(parts[1::2], parts[2::2], strict=True) if _steps(body)}


def _steps(text: str) -> list[File | Command]:
    steps: list[File | Command] = []
    for language, body in _FENCE.findall(text):
        named = _NAMED.match(body)
        if language == "sh":
            steps += [Command(line) for line in body.replace("\\\n", " ").splitlines() if line.strip()]
        elif named:
            steps.append(File(named[1], body))
        else:
            raise ValueError(f"expected a {language} block that begins with the name of its file, got {body[:60]!r}")
    return steps
