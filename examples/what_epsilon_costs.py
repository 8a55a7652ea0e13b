"""What does epsilon cost? The same federation at several budgets, beside popularity, which needs no federation.

    python examples/what_epsilon_costs.py

Takes a synthetic world, so that it runs anywhere in a minute; put {"name": "ml-100k"} for DATA to see it on real users.
"""

from pathlib import Path

import fedrec

DATA = {"name": "synthetic", "devices": 300, "items": 200}
BUDGETS = (8.0, 1.0)


def ndcg(run: fedrec.Run, label: str) -> str:
    value = run.summary["results"][label]["full"]["metrics"]["ndcg@10"]
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main(out: Path = Path("runs/what-epsilon-costs")) -> None:
    common = {"data": DATA, "server": {"rounds": 6}, "evaluation": {"every": 2}}
    for epsilon in BUDGETS:
        config = common | {"privacy": {"unit": "user", "epsilon": epsilon, "delta": 1e-5}}
        run = fedrec.simulate(config, out=out / f"epsilon-{epsilon:g}")
        print(f"epsilon {epsilon:<4g} served {ndcg(run, 'meta-learned, served')}", end="  ")
        print(f"popularity at the same epsilon {ndcg(run, 'DP popularity')}")
    run = fedrec.simulate(common | {"privacy": {"unit": "none"}}, out=out / "no-privacy")
    print(f"no privacy   served {ndcg(run, 'meta-learned, served')}  popularity {ndcg(run, 'popularity')}")


if __name__ == "__main__":
    main()
