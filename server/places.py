"""Which device a node is, in a deployment: decided when it first comes and kept in ``nodes.json`` of the run.

Flower gives a SuperNode that authenticates the same id whenever it comes back. Its place lasts, so that its turn does
(``server.min_separation``), whichever other nodes come and go.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from .. import _durable
from ..errors import RunError

logger = logging.getLogger(__name__)

FILE = "nodes.json"


class Places:
    """The places ``0 .. population - 1`` of a federation and the nodes that have them, in order of arrival."""

    def __init__(self, run_dir: Path, population: int) -> None:
        """Read what is there.

        Raises:
            RunError: the file is damaged.
        """
        self._path = run_dir / FILE
        self._population = population
        self._nodes = _read(self._path)

    def of(self, node_ids: Iterable[int]) -> dict[int, int]:
        """Place -> node of those that are there. Who is new gets the next place; that is on disk when this returns.

        Nodes beyond the population take no part: its size is a public constant of the federation.

        Raises:
            RunError: the disk is full.
        """
        present = sorted(set(node_ids))
        new = [node for node in present if node not in self._nodes]
        admitted = new[: self._population - len(self._nodes)]
        if len(admitted) < len(new):
            logger.warning(
                "%d nodes take no part: all %d places of this federation are taken; begin another with a larger "
                "population",
                len(new) - len(admitted),
                self._population,
            )
        if admitted:
            nodes = [*self._nodes, *admitted]
            with _durable.storage_errors(self._path, "no order has left"):
                _durable.replace_file(self._path, (json.dumps(nodes) + "\n").encode())
            self._nodes = nodes
        return {place: node for place, node in enumerate(self._nodes) if node in present}


def _read(path: Path) -> list[int]:
    try:
        nodes = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        nodes = None
    if not isinstance(nodes, list) or not all(type(node) is int for node in nodes) or len(set(nodes)) != len(nodes):
        raise RunError(f"expected a list of node ids in {path}, got something else; restore a copy of it")
    return nodes
