"""Every method on the default recipe's data, or three betas of DPO: win rate, KL, time and memory of each policy.

    python benchmarks/methods.py methods --seeds 1 2 3
    python benchmarks/methods.py betas --seeds 1 2 3

Runs ``prefloop run --seeds ...`` with the recipe shakespeare_methods or shakespeare_betas, and records every policy; params.yaml
is put back. ``--collect`` only records what an earlier run left under .runs/worktrees.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import pandas as pd
from common import ROOT, facts, save

SHOWN = ("method", "win_rate", "win_rate_ci", "length_controlled_win_rate", "gold_mean", "kl", "eos_rate")


def main() -> None:
    """Run (unless told to collect only), then record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["methods", "betas"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--collect", action="store_true", help="only record what is there")
    options = parser.parse_args()
    recipe, params = ROOT / "recipes" / f"shakespeare_{options.what}.yaml", ROOT / "params.yaml"
    if not options.collect:
        before = params.read_bytes()
        try:
            params.write_bytes(recipe.read_bytes())
            seeds = list(map(str, options.seeds))
            subprocess.run([sys.executable, "-m", "flows", "run", "--seeds", *seeds], cwd=ROOT, check=True)
        finally:
            params.write_bytes(before)
    command = f"python benchmarks/methods.py {options.what} --seeds " + " ".join(map(str, options.seeds))
    save(options.what, {**facts(command), "seeds": {str(seed): record(seed) for seed in options.seeds}})


def record(seed: int) -> dict[str, Any]:
    """One seed: each policy's figures from the report, and what its training took (nothing, where DVC had it from before).

    Beside them the best of n of the SFT model's answers by the reward model, n as many as were compared.
    """
    folder = ROOT / ".runs" / "worktrees" / f"seed-{seed}"
    report = json.loads((folder / "artifacts" / "report" / "metrics.json").read_text(encoding="utf-8"))
    found = {}
    for name, policy in report["policies"].items():
        file = folder / ".runs" / f"policy@{name}" / "last.json"
        took = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        found[name] = {key: policy[key] for key in SHOWN} | {key: took.get(key) for key in ("seconds", "peak_rss_bytes")}
    most = pd.read_csv(folder / "artifacts" / "evaluations" / "sft" / "optimisation.csv").iloc[-1]
    found[f"best of {most['step']:.0f}"] = {"method": "none, SFT", "gold_mean": most["gold"], "kl": most["kl"]}
    return found


if __name__ == "__main__":
    main()
