"""Fresh clones of the working tree in which the tiny recipe runs for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def clone_to(folder: Path) -> Path:
    """A git clone with the tracked files as they are in the working tree, and the tiny recipe as its params.yaml."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy2(folder / "recipes" / "tiny.yaml", folder / "params.yaml")
    return folder


def environment(home: Path, hash_seed: int) -> dict[str, str]:
    """An empty home, this interpreter's tools first, no server and no cluster from outside."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PREFECT_", "MLFLOW_", "RAY_", "PREFLOOP_", "DVC_"))
    }
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "PYTHONHASHSEED": str(hash_seed),
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@example.org",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@example.org",
    }


def run_in(folder: Path, home: Path, *arguments: str, hash_seed: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this interpreter (``-m flows ...``, ``-m dvc ...``) in a clone; its output is kept."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment(home, hash_seed), **extra},
        text=True,
        capture_output=True,
        timeout=1700,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which ``prefloop run`` has taken the tiny recipe through every stage; its output is in ``run.log``."""
    folder = tmp_path_factory.mktemp("flow") / "clone"
    clone_to(folder)
    done = run_in(folder, folder.parent / "home", "-m", "flows", "run", hash_seed=1)
    (folder.parent / "run.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[str], Path]:
    """Makes further clones."""
    return lambda name: clone_to(tmp_path / name / "clone")
