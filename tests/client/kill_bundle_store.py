"""Kills a process that adopts a bundle with SIGKILL before each system call that writes; prints what was left."""

import contextlib
import json
import sys
from pathlib import Path

from bundle_world import PINNED, bundle
from fedrec.client.bundle_store import BundleStore
from kill_at_boundaries import every_boundary

ONE, TWO, THREE = (bundle(version) for version in (1, 2, 3))


def left(folder):
    """What a new process finds, and whether it can go on."""
    store = BundleStore(folder, PINNED)
    found = store.current()
    served = 0 if found is None else found.version
    store.adopt(THREE)
    back = store.rollback().version if served else 0
    return {"served": served, "next": 3, "back": back, "files": sorted(one.name for one in folder.iterdir())}


def adopting(root, content, before):
    name = f"{before is not None}"
    return every_boundary(root, name, lambda folder: BundleStore(folder, PINNED).adopt(content), left, before)


def main():
    root = Path(sys.argv[1])
    BundleStore(root / "template", PINNED).adopt(ONE)
    with contextlib.suppress(PermissionError):
        print(json.dumps({"first": adopting(root, ONE, None), "next": adopting(root, TWO, root / "template")}))
        return
    print(json.dumps(None))


if __name__ == "__main__":
    main()
