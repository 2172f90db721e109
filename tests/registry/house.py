"""A project whose policies are real, tiny Llamas: a DVC graph with the stages' names, each a copy of what `given/` holds."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

from tests.evaluation.synthetic import write_run
from tests.project import ROOT, Project
from tests.small import model_folder

COPIES = {
    "prepare": ("prepared", ["prepared/prompts.parquet", "prepared/demonstrations.parquet"]),
    "reward": ("reward", ["reward"]),
    "policy@ppo": ("policies/ppo", ["policies/ppo"]),
    "evaluate_sft": ("evaluations/sft", ["evaluations/sft"]),
    "evaluate@ppo": ("evaluations/ppo", ["evaluations/ppo"]),
}
READS = {
    "prepare": [],
    "reward": ["artifacts/prepared/prompts.parquet"],
    "policy@ppo": ["artifacts/reward", "artifacts/prepared/demonstrations.parquet"],
    "evaluate_sft": ["artifacts/reward", "artifacts/prepared/prompts.parquet"],
    "evaluate@ppo": [
        "artifacts/policies/ppo",
        "artifacts/evaluations/sft",
        "artifacts/reward",
        "artifacts/prepared/prompts.parquet",
    ],
}
PARAMS = """seed: 1
prepare: {}
base: {}
sft: {}
preferences:
  judge:
    kind: lexicon
reward: {}
policies:
  ppo:
    method: ppo
evaluate: {}
report: {}
runtime:
  threads: 1
promotion:
  regressions:
    eos_rate: 0.15
    distinct_2: 0.15
"""


def build(folder: Path, environment: dict[str, str]) -> Project:
    """A committed project in which every stage has run once: candidate number 1."""
    folder.mkdir(parents=True)
    project = Project(folder, environment)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    give(project, 1)
    project.write("params.yaml", PARAMS)
    project.write("dvc.yaml", json.dumps({"stages": _stages()}, indent=1))
    project.write(".gitignore", project.read(".gitignore") + "/given/\n")
    project.git("init", "--quiet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "a project")
    record(project, "candidate 1")
    return project


def copy(source: Path, folder: Path) -> Path:
    """A copy of a project with a store and a ledger of its own."""
    shutil.copytree(source, folder, symlinks=True)
    with sqlite3.connect(folder / "mlflow.db") as store:  # the experiment's place is absolute
        store.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'prefloop'", ((folder / "mlruns").as_uri(),))
    store.close()
    return folder


def give(project: Project, seed: int, kindness: float = 0.45) -> None:
    """Make the next candidate what the stages will copy: another model; ``kindness`` is how often it pleases the judge."""
    from tests.registry import tables

    given = project.folder / "given"
    shutil.rmtree(given, ignore_errors=True)
    write_run(given, {"ppo": "ppo"}, prompts=40)
    tables.write(given / "artifacts", seed, kindness)
    model_folder(given / "artifacts/policies/ppo/model", seed)


def record(project: Project, message: str) -> None:
    """Run the stages and commit dvc.lock."""
    project.dvc("repro", "--quiet")
    project.git("add", "dvc.lock")
    project.git("commit", "--quiet", "--all", "--message", message)


def candidate(project: Project, seed: int, kindness: float = 0.45) -> None:
    """The next candidate, trained and recorded."""
    give(project, seed, kindness)
    record(project, f"candidate {seed}")


def _stages() -> dict[str, object]:
    stages: dict[str, object] = {}
    for stage, (folder, outs) in COPIES.items():
        name, _, key = stage.partition("@")
        body = {
            "cmd": f"mkdir -p artifacts/{folder} && cp -r given/artifacts/{folder}/. artifacts/{folder}",
            "deps": [f"given/artifacts/{folder}", *READS[stage]],
            "params": ["seed"],
            "outs": [f"artifacts/{out}" for out in outs],
        }
        stages[name] = {"foreach": [key], "do": body} if key else body
    return stages
