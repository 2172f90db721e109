"""What Prefect, DVC, Ray and MLflow cost together: the current recipe through the flow, and bare in one process.

    python benchmarks/orchestration.py [--repeats 1]

Both sides run in fresh clones of HEAD with the current params.yaml, one after the other, the order alternating, nothing cached.
Each side's seconds are recorded stage by stage as well, the flow's memory and outputs too: the budget of a run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
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
    """Measure both sides and record the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    repeats = parser.parse_args().repeats
    prefloop = str(Path(sys.executable).with_name("prefloop"))
    sides = {"bare": [sys.executable, "-c", BARE], "flow": [prefloop, "run"]}
    seconds: dict[str, list[float]] = {"bare": [], "flow": []}
    stages: dict[str, list[dict[str, Any]]] = {"bare": [], "flow": []}
    for repeat in range(repeats):
        for side in sorted(sides, reverse=bool(repeat % 2)):
            whole, by_stage = measure(sides[side])
            seconds[side].append(whole)
            stages[side].append(by_stage)
            print(f"{side}: {seconds[side][-1]:.1f} s", flush=True)
    ratio = statistics.median(seconds["flow"]) / statistics.median(seconds["bare"])
    recipe = next((path.stem for path in (ROOT / "recipes").glob("*.yaml") if same(path)), "params.yaml")
    save(
        f"orchestration_{recipe}",
        {
            **facts(f"python benchmarks/orchestration.py --repeats {repeats}"),
            "recipe": recipe,
            "seconds": seconds,
            "stages": stages,
            "ratio": ratio,
        },
    )


def same(recipe: Path) -> bool:
    """Whether the current params.yaml is this recipe."""
    return recipe.read_bytes() == (ROOT / "params.yaml").read_bytes()


def measure(command: list[str]) -> tuple[float, dict[str, Any]]:
    """Seconds of ``command`` in a fresh clone, and what each stage left in ``.runs/STAGE/last.json``."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        shutil.copy(ROOT / "params.yaml", clone / "params.yaml")
        environment = {**os.environ, "PYTHONPATH": str(clone)}
        started = time.monotonic()
        subprocess.run(command, cwd=clone, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        return seconds, {path.parent.name: json.loads(path.read_text()) for path in sorted(clone.glob(".runs/*/last.json"))}


if __name__ == "__main__":
    main()
