"""What rounding of updates costs: NDCG@10 and bytes of a run for each encoding, on ml-100k.

    python benchmarks/uplink.py --rounds 12 --seeds 2

Every run is the default configuration (unit user, epsilon 8) but for ``server.uplink``, the seed, 30 % of the devices a
round, and the baselines, which are left out. A device's update is rounded by itself, as in a deployment. The metric is
that of the last round on validation: the chosen round, which may be the warm start, would hide what rounding does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import fedrec
from fedrec.config import load_config

ENCODINGS = ("float32", "float16", "int8")


def measured(encoding: str, seed: int, data: str, rounds: int | None) -> dict[str, Any]:
    overrides = [f"data.name={data}", f"server.uplink={encoding}", f"seed={seed}", "evaluation.baselines=false"]
    overrides += [] if rounds is None else [f"server.rounds={rounds}"]
    overrides += ["evaluation.resamples=100", "evaluation.cold_start=[]", "server.participation=0.3"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        run = fedrec.simulate(load_config(None, overrides), out=Path(directory) / "run")
        rows = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    adapted = rows[-1]
    return {
        "encoding": encoding,
        "seed": seed,
        "ndcg@10": adapted["validation"]["ndcg@10"],
        "bytes_up": adapted["bytes_up"] // max(1, adapted["participants"]),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results = []
    for seed in range(arguments.seeds):
        for encoding in ENCODINGS:
            results.append(measured(encoding, seed, arguments.data, arguments.rounds))
            print(json.dumps(results[-1]), flush=True)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    for encoding in ENCODINGS:
        mine = [one for one in results if one["encoding"] == encoding]
        mean = sum(one["ndcg@10"] for one in mine) / len(mine)
        print(f"{encoding:8} NDCG@10 {mean:.4f} over {len(mine)} seeds, {mine[0]['bytes_up']:,} bytes an update")


if __name__ == "__main__":
    main()
