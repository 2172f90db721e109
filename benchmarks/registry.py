"""What registering, deciding, rolling back and a retraining with nothing to do cost with the default recipe's policies.

    python benchmarks/registry.py [--project FOLDER]

FOLDER (default: this project) is where ``prefloop run`` has taken the default recipe to its end. All happens in a clone below its
.runs, which shares its DVC cache and has a store, a ledger and a DVC remote of its own, all empty, and is gone at the end. The
gates are open there, since both policies have to be promoted for one to be rolled back; they are answered all the same.
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

STORES = ("mlruns", ".dvc-remote")
OPEN = """
promotion:
  min_win_rate: 0.0
  max_kl: 1.0e+6
  min_pair_accuracy: 0.0
  max_log_loss: 1.0e+6
  max_calibration_error: 1.0
  regressions:
    eos_rate: 1.0
    distinct_2: 1.0
  max_group_loss: 0.5
  checks: false
"""
DECIDE = """
import json, sys, time
from pathlib import Path
from tasks import promotion, registry
office = registry.opened(Path.cwd())
version, champion = office.registry.version(sys.argv[1]), office.standing().champion
started = time.monotonic()
compared = promotion.compare(office, version, champion)
judged = time.monotonic()
promotion.enact(office, promotion.decide(office, version, compared, champion))
print("RESULT " + json.dumps({"comparison": judged - started, "decision": time.monotonic() - judged}))
"""
RETRAIN = """
import json, time
from pathlib import Path
from flows import environment
environment.prepare(Path.cwd())
with environment.server_if_needed():
    from flows.retrain import retrain
    retrain(".")
    started = time.monotonic()
    result = retrain(".")
    assert result["why"] == "inputs unchanged", result
    print("RESULT " + json.dumps(time.monotonic() - started))
"""


def main() -> None:
    """Measure in a clone, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=ROOT)
    project = parser.parse_args().project.resolve()
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-", dir=project / ".runs") as folder:
        clone = cloned(project, Path(folder) / "clone")
        prefloop(clone, "history")  # MLflow's tables and ours: once in a project's life
        registered = {policy: register(clone, policy) for policy in ("ppo", "dpo")}
        again = register(clone, "ppo")
        decided = {number: child(clone, DECIDE, number) for number in ("1", "2")}
        result = {
            "registered": registered,
            "again": again,
            "models": {policy: size(clone / "artifacts" / "policies" / policy / "model") for policy in registered},
            "store": size(clone / "mlruns"),
            "decided": decided,
            "rollback": prefloop(clone, "rollback", "--reason", "a measurement"),
            "nothing_to_do": child(clone, RETRAIN),
        }
    save("registry", {**facts("python benchmarks/registry.py"), **result})


def cloned(project: Path, clone: Path) -> Path:
    """A clone with the project's results from its DVC cache, recorded in git."""
    subprocess.run(["git", "clone", "--quiet", str(project), str(clone)], check=True)
    settings = f"[cache]\n    dir = {project / '.dvc' / 'cache'}\n    type = reflink,hardlink,symlink,copy\n"
    (clone / ".dvc" / "config.local").write_text(settings, encoding="utf-8")
    shutil.copy(project / "dvc.lock", clone / "dvc.lock")
    (clone / "params.yaml").write_text((project / "params.yaml").read_text(encoding="utf-8") + OPEN, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "--quiet"], cwd=clone, env=environment(), check=True)
    prefloop(clone, "commit")
    return clone


def register(clone: Path, policy: str) -> dict[str, Any]:
    """Seconds of ``prefloop register``, the bytes that it has stored, and the seconds that copying those files takes."""
    before = stored(clone)
    seconds = prefloop(clone, "register", "--policy", policy)
    fresh = sorted(stored(clone) - before)
    with tempfile.TemporaryDirectory(dir=clone) as folder:
        started = time.monotonic()
        for number, path in enumerate(fresh):
            shutil.copyfile(path, Path(folder) / str(number))
        copying = time.monotonic() - started
    return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in fresh), "copying": copying}


def stored(clone: Path) -> set[Path]:
    """The files of MLflow's store and of DVC's remote."""
    return {path for name in STORES for path in (clone / name).rglob("*") if path.is_file()}


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def prefloop(clone: Path, *arguments: str) -> float:
    """Seconds of a whole command, as a person waits for it."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "flows", *arguments], cwd=clone, env=environment(), check=True)
    return time.monotonic() - started


def child(clone: Path, code: str, *arguments: str) -> Any:
    """What a piece of code has measured, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=clone, env=environment(), check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.rpartition("RESULT ")[2])


def environment() -> dict[str, str]:
    """No store and no server but the clone's; somebody who commits."""
    ours = ("PREFECT_", "MLFLOW_", "PREFLOOP_", "PYTHONPATH")
    who = {f"GIT_{role}_{what}": "benchmark@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)} | who


if __name__ == "__main__":
    main()
