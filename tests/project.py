"""A small project with a real DVC graph whose stages are real commands, steered from outside by files that DVC does not see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STAGE = """
import json, os, pathlib, signal, sys, time
name, *outs = sys.argv[1:]
control, folder = pathlib.Path("control", name), pathlib.Path(".runs", name)
folder.mkdir(parents=True, exist_ok=True)
with open("ran.log", "a") as file:
    file.write(f"{name} {os.getpid()} {time.monotonic()} start\\n")
print(f"{name}  1/2   50 %  1.00 step/s  0:01 left  loss 2.5", flush=True)
def told(word):
    path = control / word
    return path.read_text() if path.exists() else ""
if os.environ.get("PREFLOOP_RAY_ADDRESS"):
    print(f"note: a cluster at {os.environ['PREFLOOP_RAY_ADDRESS']}", flush=True)
if told("sleep"):
    time.sleep(float(told("sleep")))
if told("die"):
    left = int(told("die")) - 1
    (control / "die").write_text(str(left)) if left else (control / "die").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
if told("fail"):
    error = {"stage": name, "code": int(told("fail")), "message": f"{name}: bad row 7; mend it"}
    (folder / "error.json").write_text(json.dumps(error))
    sys.exit(error["code"])
seed = [line for line in open("params.yaml") if line.startswith("seed")][0]
model = {"gold_mean": 0.5, "reward_mean": 0.4, "kl": 3.0, "length": 9.0, "eos_rate": 0.9, "perplexity": 20.0}
policy = {**model, "win": 0.6, "lose": 0.2, "tie": 0.2, "win_rate": 0.7 + 0.01 * int(seed.split()[1]), "win_rate_ci": [0.6, 0.8],
          "perplexity_ratio": 1.0, "distinct_2_ratio": 1.0, "reward_win_rate": 0.7}
for out in map(pathlib.Path, outs):
    out.parent.mkdir(parents=True, exist_ok=True)
    read = "".join(pathlib.Path(dep).read_text() for dep in told("reads").split()) or pathlib.Path("src.txt").read_text()
    if out.name == "metrics.json":
        out.write_text(json.dumps({"sft": model, "reward": {"pair_accuracy": 0.75}, "policies": {"ppo": policy}}))
    elif out.name == "index.html":
        out.write_text("<html><body><h1>report</h1></body></html>")
    else:
        out.write_text(f"{name} of {seed}{read}" if name != "even" else "always the same")
with open("ran.log", "a") as file:
    file.write(f"{name} {os.getpid()} {time.monotonic()} end\\n")
print(f"{name}  done in 0.1 s  loss 2.5", flush=True)
"""

GRAPH = """
stages:
  first:
    cmd: python stage.py first artifacts/first.txt
    deps:
    - src.txt
    params:
    - seed
    outs:
    - artifacts/first.txt
  side:
    foreach:
      left: {}
      right: {}
    do:
      cmd: python stage.py side@${key} artifacts/sides/${key}/out.txt
      deps:
      - artifacts/first.txt
      outs:
      - artifacts/sides/${key}
  report:
    cmd: python stage.py report artifacts/report/index.html artifacts/report/metrics.json
    deps:
    - artifacts/sides
    params:
    - seed
    outs:
    - artifacts/report/index.html
    metrics:
    - artifacts/report/metrics.json
"""
PARAMS = """# a recipe for tests
seed: 1
prepare:
  learns_from: constraints.txt
base:
  learns_from: constraints.txt
sft: {}
preferences:
  judge:
    kind: lexicon
reward: {}
policies:
  ppo:
    method: ppo
    learns_from: artifacts/reward
evaluate: {}
report: {}
runtime: {}
"""
STAGES = ["first", "side@left", "side@right", "report"]


@dataclass
class Project:
    """The folder of such a project and how to use it; commands run as a person's would, in processes of their own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        """``prefloop ARGUMENTS`` in the background, in a session of its own as in a terminal."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows", *arguments],
            cwd=self.folder,
            env={**self.environment, **extra},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def prefloop(self, *arguments: str, **extra: str) -> tuple[int, str]:
        """``prefloop ARGUMENTS``: the exit code and all that it printed."""
        process = self.start(*arguments, **extra)
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed

    def train(self, *only: str, force: bool = False) -> dict[str, str]:
        """The flow in this process (quicker than a command): stage -> outcome."""
        from flows.train import train

        return {result["stage"]: result["outcome"] for result in train(only, force, str(self.folder))}

    def dvc(self, *arguments: str) -> str:
        """A plain ``dvc`` command."""
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True).stdout

    def git(self, *arguments: str) -> str:
        """A git command."""
        return subprocess.run(
            ["git", *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def tell(self, stage: str, **orders: object) -> None:
        """Steer a stage: ``sleep`` seconds, ``die`` so many times, ``fail`` with a code."""
        folder = self.folder / "control" / stage
        folder.mkdir(parents=True, exist_ok=True)
        for word, value in orders.items():
            (folder / word).write_text(str(value))

    def forget(self, stage: str) -> None:
        """Steer a stage no longer."""
        shutil.rmtree(self.folder / "control" / stage, ignore_errors=True)

    def events(self) -> list[tuple[str, int, float, str]]:
        """What really ran, from the stages' own log: stage, process id, monotonic seconds, start or end."""
        path = self.folder / "ran.log"
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(name, int(pid), float(at), what) for name, pid, at, what in rows]

    def ran(self) -> list[str]:
        """The stages that have started since the last ``fresh_log``."""
        return [name for name, _, _, what in self.events() if what == "start"]

    def fresh_log(self) -> None:
        """Forget what ran."""
        (self.folder / "ran.log").unlink(missing_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        """Read a file of the project."""
        return (self.folder / name).read_text(encoding="utf-8")

    def set(self, pattern: str, text: str, name: str = "params.yaml") -> None:
        """Replace the first match of a pattern in a file."""
        before = self.read(name)
        after = re.sub(pattern, text, before, count=1, flags=re.MULTILINE)
        assert after != before, f"{pattern} is not in {name}"
        self.write(name, after)


def make(folder: Path, environment: dict[str, str]) -> Project:
    """A committed project in ``folder``; params.yaml is its recipe ``one``."""
    folder.mkdir(parents=True)
    project = Project(folder, environment)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    project.write("recipes/one.yaml", PARAMS)
    project.write("recipes/two.yaml", PARAMS.replace("seed: 1", "seed: 2"))
    project.write("params.yaml", PARAMS)
    project.write("stage.py", STAGE)
    project.write("dvc.yaml", GRAPH)
    project.write("src.txt", "source\n")
    with (folder / ".gitignore").open("a") as file:
        file.write("/control/\n/ran.log\n")
    project.git("init", "--quiet")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "a project")
    return project


def environment_for(home: Path, **extra: str) -> dict[str, str]:
    """An empty home, this interpreter first, nothing of the person who runs the tests."""
    home.mkdir(parents=True, exist_ok=True)
    prefixes = ("PREFECT_", "MLFLOW_", "RAY_", "PREFLOOP_", "DVC_", "GIT_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "true",
        **{f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        **extra,
    }
