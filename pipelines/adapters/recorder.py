"""The recorder: ``python -m pipelines.adapters.recorder ROOT`` carries spool files to MLflow until none is left.

One a project and store (a file lock sees to it), started by whoever opens a spool. It closes the run of an owner that
was killed, replays what earlier recorders could not send, and lives no longer than the owners do. Every message may be
sent twice without harm (a metric is the same point, a tag the same value), so a crash between sending and noting loses
and doubles nothing.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.adapters.spool import EXPERIMENT, folder_of, lives, store_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

POLL_SECONDS = 0.05
RETRY_SECONDS = 2.0
LINGER_SECONDS = 15.0
SQLITE_WAIT_SECONDS = 5
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "DO_NOT_TRACK": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


def main(root: Path) -> int:
    """Serve the spool folder of ``root``; return at once where another recorder does."""
    folder = folder_of(root)
    with (folder / "lock").open("a") as lock:
        for _ in range(20):  # a prober holds the lock for some microseconds
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        else:
            return 0
        os.nice(5)
        owners = Owners(folder)
        threading.Thread(target=owners.watch, name="owners", daemon=True).start()
        Recorder(root, folder, owners).serve()
    return 0


class Owners:
    """Who writes the spool files, and whether anyone of them still runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[Path, dict[str, Any]] = {}

    def of(self, path: Path) -> dict[str, Any] | None:
        """The owner that the first line names; None where that line is not whole."""
        if path not in self._known:
            with path.open("rb") as file:
                line = file.readline()
            if not line.endswith(b"\n"):
                return None
            self._known[path] = json.loads(line).get("owner") or {"pid": 0, "started": 0}
        return self._known[path]

    def alive(self, path: Path) -> bool:
        """Whether the owner of ``path`` may still write to it."""
        try:
            owner = self.of(path)
        except (OSError, ValueError):
            return False
        return time.time() - path.stat().st_mtime < LINGER_SECONDS if owner is None else lives(owner)

    def any_alive(self) -> bool:
        """Whether there is anyone left to serve."""
        return any(self.alive(path) for path in self.folder.glob("*.jsonl"))

    def watch(self) -> None:
        """End this process some seconds after the last owner, whatever call of the store hangs: the files stay."""
        last = time.monotonic()
        while time.monotonic() - last < LINGER_SECONDS:
            time.sleep(1.0)
            if self.any_alive():
                last = time.monotonic()
        os._exit(0)


class Recorder:
    """The loop over all spool files."""

    def __init__(self, root: Path, folder: Path, owners: Owners) -> None:
        self.root, self.folder, self.owners = root, folder, owners
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._done: dict[Path, int] = {}

    def serve(self) -> None:
        """Until no spool file is left, or only such as cannot be sent now and nobody waits for."""
        retry_at = 0.0
        while paths := sorted(self.folder.glob("*.jsonl")):
            if time.monotonic() >= retry_at:
                try:
                    self._connect()
                    for path in paths:
                        self._carry_or_set_aside(path)
                    (self.folder / "trouble").unlink(missing_ok=True)
                except FileNotFoundError as error:  # the project was removed under our feet
                    print(error, file=sys.stderr, flush=True)
                    return
                except Exception as error:  # of the store, the network, the disk: the file stays, later is another try
                    reason = f"MLflow cannot be reached ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
                    (self.folder / "trouble").write_text(reason, encoding="utf-8")
                    retry_at = time.monotonic() + RETRY_SECONDS
            time.sleep(POLL_SECONDS)

    def _connect(self) -> None:
        if self._client is None:
            client, self._experiment = connect(self.root)
            _sweep(client, self._experiment)
            self._client = client

    def _carry_or_set_aside(self, path: Path) -> None:
        """A damaged file (a full disk cuts lines) must not hold up the others."""
        try:
            self._carry(path)
        except (ValueError, KeyError, TypeError) as error:
            print(f"{path.name}: set aside as .bad: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            path.rename(path.with_suffix(".bad"))

    def _carry(self, path: Path) -> None:
        """Send what is new in one spool file; behind its end, remove it."""
        assert self._client is not None
        alive = self.owners.alive(path)  # asked first: what a dead owner has written is then all there
        messages, offset = _read(path, self._done.get(path, 0))
        if not alive and (not messages or messages[-1]["op"] != "end"):
            messages.append({"op": "end", "status": "", "time": int(time.time() * 1000), "message": "the process died"})
        from pipelines.adapters.runs import Run

        if messages:
            ended = Run(self._client, self._experiment, self.root, path).apply(messages)
            self._done[path] = offset
            if ended:
                path.unlink(missing_ok=True)
                path.with_suffix(".run").unlink(missing_ok=True)
                self._done.pop(path)


def _read(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines behind ``offset``, and the offset behind them."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read()
    end = block.rfind(b"\n") + 1
    return [json.loads(line) for line in block[:end].splitlines()], offset + end


def connect(root: Path) -> tuple[MlflowClient, str]:
    """Return a client of the project's store, and the id of the experiment.

    Several processes that initialise one fresh SQLite file at once crash, so that is done under a lock beside it.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    uri = store_uri(root)
    with _initialising(uri):
        local = uri.startswith("sqlite:")
        client = MlflowClient(f"{uri}?timeout={SQLITE_WAIT_SECONDS}" if local and "?" not in uri else uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return client, str(found.experiment_id)
        place = (root.resolve() / "mlruns").as_uri() if local else None
        return client, str(client.create_experiment(EXPERIMENT, artifact_location=place))


@contextmanager
def _initialising(uri: str) -> Iterator[None]:
    if not uri.startswith("sqlite:///"):
        yield
        return
    with open(uri.removeprefix("sqlite:///").partition("?")[0] + ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sweep(client: MlflowClient, experiment: str) -> None:
    """Close as KILLED what dead processes of this host have left RUNNING."""
    query = f"attributes.status = 'RUNNING' and tags.`prefloop.host` = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], query, max_results=1000):
        tags = run.data.tags
        if not lives({"pid": tags.get("prefloop.pid", 0), "started": tags.get("prefloop.pid_started", 0)}):
            client.set_terminated(run.info.run_id, "KILLED")


def find(root: Path, tags: dict[str, str]) -> str:
    """The id of the newest FINISHED run that has all these tags; "" if there is none."""
    client, experiment = connect(root)
    query = " and ".join(["attributes.status = 'FINISHED'", *(f"tags.`{key}` = '{tags[key]}'" for key in sorted(tags))])
    runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time DESC"])
    return str(runs[0].info.run_id) if runs else ""


def history(root: Path, run_id: str) -> tuple[str, list[dict[str, float]]] | None:
    """The name of a run and its stage's metrics step by step, in the order of the steps; None for an unknown run.

    A metric that has one value only is a final figure, not a column, unless the run has one step.
    """
    from mlflow.exceptions import MlflowException

    client, _ = connect(root)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        return None
    columns: dict[str, dict[int, float]] = {}
    for name in sorted(name for name in run.data.metrics if not name.startswith(("time/", "memory/"))):
        for point in sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp):
            columns.setdefault(name, {}).setdefault(int(point.step), float(point.value))  # a final figure comes second
    most = max((len(column) for column in columns.values()), default=0)
    columns = {name: column for name, column in columns.items() if len(column) > 1 or most == 1}
    steps = sorted({step for column in columns.values() for step in column})
    rows = [{"step": float(step), **{name: column.get(step, math.nan) for name, column in columns.items()}} for step in steps]
    return str(run.data.tags.get("prefloop.stage") or run.info.run_name).rpartition("@")[2], rows


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
