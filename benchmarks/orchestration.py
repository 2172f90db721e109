"""What Prefect, DVC, Ray and MLflow cost together: the current recipe through the flow, and bare in one process.

    python benchmarks/orchestration.py [--seed 1]

The flow is ``prefloop run --seeds SEED --force`` (every stage runs, in the seed's worktree), the bare process runs in a fresh
clone of HEAD; both with the current params.yaml and that seed, one after the other. Each side's seconds are recorded stage by
stage as well, the flow's memory and outputs too: the budget of a run.
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

from common import ROOT, facts, save

BARE = """
import importlib, json, shutil, sys, time
from pathlib import Path
sys.path.insert(0, ".")
from pipelines import config
from pipelines.context import Context, Worker, make_deterministic, seed_for
from pipelines.journal import Journal
from pipelines.stages import stage_of

class Here:
    workers = 0
    def __init__(self, journal): self.journal = journal
    def train(self, function, job, scratch): function(job, Worker(0, 1, "cpu", self.journal))
    def map(self, function, job, items): return function(job, items, Worker(0, 1, "cpu", self.journal))

params = config.load()
policies = list(params.policies)
names = ["prepare", "base", "sft", "preferences", "reward", *[f"policy@{p}" for p in policies], "evaluate_sft",
         *[f"evaluate@{p}" for p in policies], "report"]
for name in names:
    scratch = Path(".runs") / name / "bare"
    scratch.mkdir(parents=True)
    started = time.monotonic()
    journal = Journal(scratch / "timings.jsonl")
    root = Path.cwd()
    make_deterministic(seed_for(params.seed, name), params.runtime.threads)
    module = importlib.import_module(f"pipelines.stages.{stage_of(name).module}")
    module.run(Context(name, params, root, root / scratch, journal, Here(journal)))
    shutil.copytree(scratch / "outs", root, dirs_exist_ok=True, copy_function=shutil.move)
    (scratch.parent / "last.json").write_text(json.dumps({"seconds": time.monotonic() - started}))
"""


def main() -> None:
    """Measure both sides and record their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    started = time.monotonic()
    subprocess.run(
        [str(Path(sys.executable).with_name("prefloop")), "run", "--seeds", str(seed), "--force"], cwd=ROOT, check=True
    )
    seconds = {"flow": time.monotonic() - started}
    worktree = ROOT / ".runs" / "worktrees" / f"seed-{seed}"
    stages = {"flow": stages_of(worktree)}
    seconds["bare"], stages["bare"] = bare(worktree)
    print(f"flow {seconds['flow']:.1f} s, bare {seconds['bare']:.1f} s", flush=True)
    recipe = next((path.stem for path in (ROOT / "recipes").glob("*.yaml") if same(path)), "params.yaml")
    result = {"recipe": recipe, "seed": seed, "seconds": seconds, "stages": stages, "ratio": seconds["flow"] / seconds["bare"]}
    save(f"orchestration_{recipe}", {**facts(f"python benchmarks/orchestration.py --seed {seed}"), **result})


def same(recipe: Path) -> bool:
    """Whether the current params.yaml is this recipe."""
    return recipe.read_bytes() == (ROOT / "params.yaml").read_bytes()


def bare(worktree: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of the stage functions in one process, in a fresh clone with the worktree's params.yaml; and of each stage."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        shutil.copy(worktree / "params.yaml", clone / "params.yaml")
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", BARE], cwd=clone, env={**os.environ, "PYTHONPATH": str(clone)}, check=True)
        return time.monotonic() - started, stages_of(clone)


def stages_of(folder: Path) -> dict[str, Any]:
    """What each stage left in ``.runs/STAGE/last.json``."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(".runs/*/last.json"))}


if __name__ == "__main__":
    main()
