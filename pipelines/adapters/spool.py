"""Spool files: what a run has to tell MLflow, written to disk first, and who wrote it.

A spool file belongs to one stage or one flow, under ``.runs/tracking/<store>/``. Its owner appends one JSON line a
message (``open``, ``log``, ``end``); the recorder (pipelines/adapters/recorder.py) carries them to MLflow and removes
the file. A server that is down, a locked database or a killed process therefore loses nothing: the file stays.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = "prefloop"
RESPAWN_SECONDS = 5.0
PAGE_PORT = 5000
"""Where `make ui` shows a store without a server of its own, on 127.0.0.1."""


def store_uri(root: Path) -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, or a SQLite file in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def page_of(root: Path, run_id: str) -> str:
    """Where a run is shown: on the tracking server (without the password that its address may hold), or by `make ui`."""
    address = urlsplit(store_uri(root))
    server = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")
    return f"{server if address.scheme in ('http', 'https') else f'http://127.0.0.1:{PAGE_PORT}'}/#/runs/{run_id}"


def folder_of(root: Path) -> Path:
    """The spool folder of a project and a store; private, because parameters may be. The store's address may hold a
    password, so its hash is the name."""
    folder = root / ".runs" / "tracking" / hashlib.sha256(store_uri(root).encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def outs_hash(outs: Mapping[str, str]) -> str:
    """One hash of a stage's outputs (path -> md5, as in dvc.lock): what the tag ``prefloop.outs_hash`` holds."""
    return hashlib.sha256("\n".join(f"{path} {md5}" for path, md5 in sorted(outs.items())).encode()).hexdigest()


def this_process() -> dict[str, Any]:
    """What names this process for good: a pid alone is used again."""
    return {"pid": os.getpid(), "started": started_at(os.getpid()), "host": socket.gethostname()}


def started_at(pid: int) -> int:
    """The start of a process in clock ticks since boot; 0 where it does not run (or is a zombie), 1 where /proc is
    missing and it does."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0 if Path("/proc/self/stat").exists() else _signalled(pid)
    return 0 if fields[0] in "ZX" else int(fields[19])


def _signalled(pid: int) -> int:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return 0
    except PermissionError:
        return 1
    return 1


def lives(owner: dict[str, Any]) -> bool:
    """Whether the process that ``this_process`` described still runs on this host."""
    return started_at(int(owner["pid"])) == int(owner["started"]) != 0


class Spool:
    """The owner's side of one spool file."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.resolve()
        self.folder = folder_of(root)
        self.key = f"{time.time_ns()}-{name}-{uuid.uuid4().hex[:8]}"
        self.path = self.folder / f"{self.key}.jsonl"
        self._spawned = 0.0

    def append(self, op: str, **fields: Any) -> None:
        """Write one message; see that a recorder is there to carry it."""
        message = {"op": op, "time": int(time.time() * 1000), **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(message, default=str) + "\n")
        self.ensure_recorder()

    def run_id(self) -> str:
        """The MLflow run id, once the recorder has it."""
        try:
            return self.path.with_suffix(".run").read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def trouble(self) -> str:
        """Why the recorder cannot write just now; empty when it can."""
        try:
            return (self.folder / "trouble").read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def ensure_recorder(self) -> None:
        """Start a recorder unless one holds the folder's lock."""
        if time.monotonic() - self._spawned < RESPAWN_SECONDS or not is_free(self.folder):
            return
        self._spawned = time.monotonic()
        path = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self.folder / "recorder.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "pipelines.adapters.recorder", str(self.root)],
                cwd=PACKAGE_ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # outlives a killed stage by the moment that it takes to close its run
            )


def is_free(folder: Path) -> bool:
    """Whether no recorder serves the folder."""
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
