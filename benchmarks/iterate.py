"""Gold against KL over the rounds of `prefloop iterate`, against one round with as many labels; the tiny recipe, five seeds.

    python benchmarks/iterate.py --seeds 1 2 3 4 5

Each seed has a clone of its own. The loop: the recipe as it stands (round 0), then ``ROUNDS`` times ``PAIRS`` labels of the
best policy's answers. The single round: as many labels at once, of the SFT model's answers, chosen and labelled in the same
way, and one policy, whose snapshots give gold along KL. A seed that is measured again replaces itself in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from common import RESULTS, ROOT, facts, save
from ruamel.yaml import YAML

ROUNDS, PAIRS = 3, 96
POLICY = "ppo"
PPO: dict[str, Any] = {"steps": 24, "snapshot_every": 4}
"""The recipe's four steps move so small a policy by less than what its evaluation tells apart."""
STAGES = ("prepare", "base", "sft", "preferences", "reward", f"policy@{POLICY}", "evaluate_sft", f"evaluate@{POLICY}")


def main() -> None:
    """Measure every seed, one after the other, and save after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    kept = RESULTS / "iterate.json"
    known = json.loads(kept.read_text(encoding="utf-8"))["seeds"] if kept.exists() else {}
    for seed in options.seeds:
        known[str(seed)] = measured(seed)
        command = "python benchmarks/iterate.py --seeds " + " ".join(sorted(known, key=int))
        save("iterate", {**facts(command), "seeds": known})


def measured(seed: int) -> dict[str, Any]:
    """The loop's rounds and the single round of one seed, in a clone that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="prefloop-iterate-") as name:
        clone = Path(name) / "clone"
        copied(clone)
        configure(clone, seed, PAIRS)
        git(clone, "commit", "--quiet", "--all", "--message", f"seed {seed}")
        started = time.monotonic()
        flows(clone, "iterate", "--rounds", str(ROUNDS), "--policy", POLICY)
        seconds = time.monotonic() - started
        rounds = json.loads(git(clone, "show", "iterate:rounds.json"))["rounds"]

        configure(clone, seed, PAIRS * (len(rounds) - 1))
        flows(clone, "run", "--only", *STAGES)
        flows(clone, "collect", "--round", "1", "--policy", "sft")
        flows(clone, "run", "--only", *STAGES)
        return {"seconds": seconds, "rounds": rounds, "single": single(clone / "artifacts")}


def copied(clone: Path) -> None:
    """HEAD's code, with the tracked files as they are now; the loop commits, so somebody must be its author."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for key, value in (("user.name", "prefloop"), ("user.email", "prefloop@localhost")):
        git(clone, "config", key, value)
    for file in git(ROOT, "ls-files").split():
        if (ROOT / file).is_file():
            shutil.copy2(ROOT / file, clone / file)


def configure(clone: Path, seed: int, pairs: int) -> None:
    """The tiny recipe with this benchmark's policy, and so many labels a round."""
    yaml = YAML()
    params = yaml.load((ROOT / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
    params["seed"] = seed
    params["preferences"]["source"] = "both"
    params["policies"] = {POLICY: {**params["policies"][POLICY], **PPO}}
    params["collect"] = {"prompts": 128, "answers": 4, "pairs": pairs, "uncertain": 0.5}
    with (clone / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def single(artifacts: Path) -> dict[str, Any]:
    """The single round's labels, its reward model's accuracy, and gold along KL over the policy's snapshots."""
    reward = json.loads((artifacts / "reward" / "metrics.json").read_text(encoding="utf-8"))
    points = pd.read_csv(artifacts / "evaluations" / POLICY / "optimisation.csv")[["step", "kl", "gold", "reward"]].to_dict(
        "records"
    )
    labels = sum(reward[f"{split}_pairs"] for split in ("train", "validation", "test"))
    return {"labels": labels, "pair_accuracy": reward["pair_accuracy"], "curve": points}


def flows(clone: Path, *arguments: str) -> None:
    """``prefloop ARGUMENTS`` in the clone, with the clone's code; its output stays on the terminal."""
    dropped = ("PREFECT_", "MLFLOW_", "PREFLOOP_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    subprocess.run(
        [sys.executable, "-m", "flows", *arguments], cwd=clone, env={**environment, "PYTHONPATH": str(clone)}, check=True
    )


def git(folder: Path, *arguments: str) -> str:
    """Git's answer."""
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
