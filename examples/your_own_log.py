"""From a CSV file of your own to explained recommendations.

    python examples/your_own_log.py

Writes a small log of a radio station's listeners, imports it, trains a policy under unit ``interaction`` and explains
what one listener would hear next.
"""

import csv
from pathlib import Path

import fedrec
import numpy as np
from fedrec.simulation.data import import_dataset

GENRES = ("jazz", "soul", "folk", "techno")


def write_log(folder: Path, listeners: int = 60, tracks: int = 40) -> tuple[Path, Path]:
    """Listeners who mostly play one genre each."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    items, plays = folder / "tracks.csv", folder / "plays.csv"
    with items.open("w", newline="") as file:
        rows = [(f"t{track}", f"Track {track}", GENRES[track % len(GENRES)]) for track in range(tracks)]
        csv.writer(file).writerows([("track", "title", "genre"), *rows])
    with plays.open("w", newline="") as file:
        rows = []
        for listener in range(listeners):
            taste = np.where(np.arange(tracks) % len(GENRES) == listener % len(GENRES), 8.0, 1.0)
            chosen = draw.choice(tracks, size=8, replace=False, p=taste / taste.sum())
            rows += [(f"u{listener}", f"t{track}", 1_700_000_000 + 60 * i) for i, track in enumerate(chosen)]
        csv.writer(file).writerows([("listener", "track", "when"), *rows])
    return plays, items


def main(folder: Path = Path("runs/your-own-log")) -> None:
    plays, items = write_log(folder)
    mapping = {"user": "listener", "item": "track", "timestamp": "when", "items.id": "track"}
    import_dataset(plays, "radio", mapping=mapping, items=items, replace=True)
    run = fedrec.simulate(
        {
            "data": {"name": "radio"},
            "privacy": {"unit": "interaction", "epsilon": 8.0, "max_participations": 5},
            "server": {"rounds": 6},
            "evaluation": {"baselines": False},
        },
        out=folder / "run",
    )
    print(run.summary["privacy"][0]["sentence"])
    for item in run.recommend("u0", k=3, explain=True):
        because = ", ".join(title for title, _ in item.because)
        print(f"{item.rank}. {item.title} ({item.probability:.1%}) because of {because}")


if __name__ == "__main__":
    main()
