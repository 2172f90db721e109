"""Tracking for stages and flows: small, safe, and without importing MLflow (2 s a process, ten stages a run).

A tracker writes to a spool file; one recorder process a project carries all of them to MLflow, on the other core, and
closes the run of a process that was killed. Nothing here ever fails or stalls a stage: a store that cannot be reached is
a warning, and what was logged is sent by the next run.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.adapters.machine import ENVIRONMENT
from pipelines.adapters.spool import Spool, this_process
from pipelines.adapters.spool import outs_hash as outs_hash
from pipelines.adapters.spool import store_uri as store_uri  # for whoever links to it (`make ui`)
from pipelines.errors import ConfigurationError

PARENT = "PREFLOOP_PARENT_RUN"
WAIT_SECONDS = 20.0
PATIENCE_IN_TROUBLE = 2.0


class Tracker:
    """The run of one stage, or of one flow. Safe from several threads; no method raises."""

    def __init__(self, root: Path, name: str, scratch: Path | None = None, **fields: Any) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._warned = False
        self._closed = False
        self._started = time.monotonic()
        self._seen_file = scratch / "mlflow_lines" if scratch else None
        self._skip = self._seen = 0
        self._spool: Spool | None = None
        with self._safely():
            self._skip = int(self._seen_file.read_text()) if self._seen_file and self._seen_file.exists() else 0
            self._seen = self._skip
            self._spool = Spool(root, name)
            self._spool.append("open", name=name, scratch=scratch, owner=this_process(), **fields)

    def log(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Pass on journal lines: all of them, from the journal's start (those that an earlier life of the same run has
        passed on are left out here)."""
        with self._lock, self._safely():
            fresh = list(lines)[min(self._skip, len(lines)) :]
            self._skip = max(0, self._skip - len(lines))
            if not fresh or self._spool is None or self._closed:
                return
            self._spool.append("log", lines=fresh)
            self._seen += len(fresh)
            if self._seen_file:
                self._seen_file.write_text(str(self._seen))

    def finish(self, metrics: Mapping[str, float], outs: Mapping[str, str]) -> None:
        """Close the run as FINISHED with the stage's final metrics and the hashes of its outputs (path -> md5)."""
        self._end("FINISHED", metrics=dict(metrics), outs=dict(outs))

    def fail(self, message: str, status: str = "FAILED") -> None:
        """Close the run as FAILED (or KILLED)."""
        self._end(status, message=message)

    def run_id(self, seconds: float = WAIT_SECONDS) -> str:
        """The MLflow run id; waits for it, and returns "" where the store cannot be reached."""
        spool = self._spool
        if spool is None or not self._wait(lambda: bool(spool.run_id()), seconds):
            return ""
        return spool.run_id()

    def _end(self, status: str, **fields: Any) -> None:
        with self._lock, self._safely():
            if self._spool is None or self._closed:
                return
            self._closed = True
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            measured = {
                "time/seconds": time.monotonic() - self._started,
                "time/core_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used),
                "memory/peak_rss_bytes": float(peak),
            }
            self._spool.append("end", status=status, measured=measured, **fields)
            path = self._spool.path
            if status == "FINISHED" and self._seen_file:
                self._seen_file.unlink(missing_ok=True)
            self._wait(lambda: not path.exists(), WAIT_SECONDS)

    def _wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait for the recorder; give up early where it says that the store is in trouble."""
        spool, started = self._spool, time.monotonic()
        while spool is not None and not done():
            waited = time.monotonic() - started
            trouble = spool.trouble() if waited > PATIENCE_IN_TROUBLE else ""
            if trouble or waited > seconds:
                self._warn(f"{trouble or 'MLflow is slow'}; kept under .runs/tracking and sent by the next run")
                return False
            spool.ensure_recorder()
            time.sleep(0.02)
        return spool is not None

    @contextmanager
    def _safely(self) -> Iterator[None]:
        """Tracking is not worth a training run: what goes wrong is said once."""
        try:
            yield
        except (OSError, ValueError, TypeError) as error:
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            print(f"warning: {self.name}: tracking: {message}", file=sys.stderr, flush=True)


def open_stage(
    root: Path,
    stage: str,
    scratch: Path,
    params: Mapping[str, object],
    inputs: Mapping[str, str],
    source: str,
    environment: Mapping[str, str],
) -> Tracker:
    """Open the run of a stage that really runs, under the flow's run where PREFLOOP_PARENT_RUN names one.

    ``scratch/mlflow_run`` keeps the run id, so that a stage that goes on from its checkpoint goes on in the same run.
    ``inputs`` maps what the stage reads to its hash; ``source`` says where the text comes from; ``environment``
    is that of pipelines/adapters/machine.py, which a version made from this run is compared by.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    parent = os.environ.get(PARENT, "")
    tags = {ENVIRONMENT: json.dumps(environment, sort_keys=True)}
    return Tracker(root, stage, scratch, kind="stage", parent=parent, params=params, inputs=inputs, source=source, tags=tags)


@contextmanager
def parent(root: Path, name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """The run of a flow: yields its run id and sets PREFLOOP_PARENT_RUN for the stages that are started inside.

    FINISHED at the end, FAILED on an exception, KILLED on Ctrl-C or SIGTERM.
    """
    tracker = Tracker(root, name, kind="flow", tags=tags)
    run_id, before = tracker.run_id(), os.environ.get(PARENT)
    os.environ[PARENT] = run_id
    try:
        yield run_id
        tracker.finish({}, {})
    except (KeyboardInterrupt, SystemExit) as error:
        tracker.fail(type(error).__name__, "KILLED")
        raise
    except BaseException as error:
        tracker.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        os.environ.pop(PARENT, None)
        if before is not None:
            os.environ[PARENT] = before


def find_run(root: Path, stage: str, outs: str) -> str:
    """The id of the newest finished run of ``stage`` that made the outputs with this ``outs_hash``; "" if there is none.

    Imports MLflow (2 s the first time in a process); "" with a warning where the store cannot be read.
    """
    from pipelines.adapters import recorder

    try:
        return recorder.find(root, {"prefloop.stage": stage, "prefloop.outs_hash": outs})
    except Exception as error:  # MLflow's stores raise their own, SQLAlchemy's and requests' exceptions
        print(f"warning: tracking: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return ""


def read_run(root: Path, run_id: str) -> tuple[str, list[dict[str, float]]]:
    """A run's name and its metrics as rows of a history, ``step`` first; seconds, bytes and final figures are left out.

    Raises ConfigurationError where the store has no such run.
    """
    from pipelines.adapters import recorder

    found = recorder.history(root, run_id)
    if found is None:
        raise ConfigurationError(f"MLflow run {run_id}: not in the store {store_uri(root)}; MLFLOW_TRACKING_URI names another")
    return found


def warm(root: Path) -> None:
    """Start the recorder early: its imports (2 s) then overlap with whatever the caller does before ``parent``."""
    with contextlib.suppress(OSError):
        Spool(root, "warm").append("open", kind="warm", name="warm", owner=this_process())
