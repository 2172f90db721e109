"""Does gold rise and fall while the proxy rises? A small reward model on few pairs, optimised for long, over three seeds.

    python benchmarks/over_optimisation.py --seeds 1 2 3

Runs ``prefloop run --seeds ...`` with ``SETTINGS`` put into the default recipe (an hour or more on 2 cores), and records every
seed's curves; params.yaml is put back. ``--collect`` only records what an earlier run left under .runs/worktrees.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from common import ROOT, facts, save
from ruamel.yaml import YAML

SETTINGS: dict[str, dict[str, Any]] = {
    "prepare": {"train_prompts": 48},
    "reward": {"layers": 2, "num_train_epochs": 3},
    "evaluate": {"best_of": 16},
}
PPO: dict[str, Any] = {
    "steps": 50,
    "batch_size": 16,
    "micro_batch_size": 16,
    "mini_batch_size": 8,
    "beta": 0.001,
    "snapshot_every": 10,
}
"""48 prompts give some 200 pairs; with so small a beta nothing but the learning rate holds the policy back."""


def main() -> None:
    """Run (unless told to collect only), then record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--collect", action="store_true", help="only record what is there")
    options = parser.parse_args()
    if not options.collect:
        path = ROOT / "params.yaml"
        before = path.read_bytes()
        try:
            write(path)
            seeds = list(map(str, options.seeds))
            subprocess.run([sys.executable, "-m", "flows", "run", "--seeds", *seeds], cwd=ROOT, check=True)
        finally:
            path.write_bytes(before)
    command = "python benchmarks/over_optimisation.py --seeds " + " ".join(map(str, options.seeds))
    save("over_optimisation", {**facts(command), "seeds": {str(seed): record(seed) for seed in options.seeds}})


def write(path: Path) -> None:
    """The default recipe with the settings of this benchmark, and PPO as its only policy."""
    yaml = YAML()
    params = yaml.load((ROOT / "recipes" / "shakespeare.yaml").read_text(encoding="utf-8"))
    for section, settings in SETTINGS.items():
        params[section].update(settings)
    params["policies"] = {"ppo": {**params["policies"]["ppo"], **PPO}}
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def record(seed: int) -> dict[str, Any]:
    """One seed: the points and the fit of best-of-n and of the policy, and how far SFT's answers spread."""
    artifacts = ROOT / ".runs" / "worktrees" / f"seed-{seed}" / "artifacts"
    report = json.loads((artifacts / "report" / "metrics.json").read_text(encoding="utf-8"))
    answers = pd.read_parquet(artifacts / "evaluations" / "sft" / "samples.parquet")
    spread = answers[answers["answer"] != "greedy"][["gold", "reward"]].std().to_dict()
    found = {}
    for name, model in {"best of n": report["sft"], **report["policies"]}.items():
        place = "sft" if name == "best of n" else name
        points = pd.read_csv(artifacts / "evaluations" / place / "optimisation.csv").to_dict("records")
        found[name] = {"points": points, "fit": model["optimisation"], "sd": spread}
    return found


if __name__ == "__main__":
    main()
