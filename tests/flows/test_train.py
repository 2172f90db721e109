"""The flow through the real Prefect and the real DVC, on a small graph of real commands."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.stages import StageDied
from tests.project import STAGES, Project


def states(project: Project) -> dict[str, str]:
    """The state name of each task run of the newest flow run, asked from Prefect."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        for _ in range(100):  # the server records task runs from events: a moment later
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[newest.id])))
            found = {run.name: str(run.state_name) for run in runs}
            if found and not set(found.values()) & {"Running", "Pending"}:
                break
            time.sleep(0.1)
    return found


def mlflow_runs(store: str) -> list[Any]:
    """The runs of flows in the tests' MLflow store, newest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, "attributes.run_name = 'train'", order_by=["attributes.start_time DESC"]))


def artifact(key: str) -> str:
    """The newest Prefect artifact with this key."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return str(client.request("GET", f"/artifacts/{key}/latest").json()["data"])


def test_it_runs_restores_and_leaves_alone(project: Project, offline: Project, store: str) -> None:
    code, printed = project.prefloop("run")
    assert code == 0, printed
    assert project.ran() == STAGES
    assert set(states(project).values()) == {"Completed"}
    assert project.dvc("status", "--json").strip() == "{}"
    assert "win" in printed
    assert ".runs/report/index.html" in printed
    page = project.read(".runs/report/index.html")
    assert page.endswith("</section></body></html>")
    assert project.git("rev-parse", "HEAD").strip() in page
    first_lock = project.read("dvc.lock")
    offline.dvc("repro")
    assert offline.read("dvc.lock") == first_lock, "DVC alone gives the same bytes"
    at = {(name, what): seconds for name, _, seconds, what in project.events()}
    assert at["side@right", "start"] > at["side@left", "end"], "one at a time, unless told otherwise"

    # one MLflow run for the flow; the page and Prefect's artifact tell the same story
    runs = mlflow_runs(store)
    flow = runs[0]
    assert flow.info.status == "FINISHED"
    assert flow.info.run_id in page
    assert f'/runs/flow-run/{flow.data.tags["prefect.flow_run"]}">' in page
    assert "ppo" in artifact("summary")

    # a server is configured: the flow is run and shown there, although nothing is to do
    project.fresh_log()
    assert project.train() == dict.fromkeys(STAGES, "unchanged")
    assert project.ran() == []
    assert states(project) == dict.fromkeys(STAGES, "Unchanged")
    assert len(mlflow_runs(store)) == len(runs), "no stage ran, no run"

    # another seed runs everything again; the first one then comes back from the run cache, byte for byte
    project.set("^seed: 1", "seed: 2")
    assert project.train() == dict.fromkeys(STAGES, "ran")
    project.set("^seed: 2", "seed: 1")
    project.fresh_log()
    code, printed = project.prefloop("run")
    assert code == 0, printed
    assert project.ran() == []
    assert states(project) == dict.fromkeys(STAGES, "Cached")
    assert project.read("dvc.lock") == first_lock
    assert printed.count("restored from the run cache") == 2 * len(STAGES)  # once while it runs, once in the summary


def test_independent_stages_run_side_by_side(project: Project) -> None:
    for side in ("side@left", "side@right"):
        project.tell(side, sleep=3)
    project.set("^runtime: {}", "runtime:\n  parallel_stages: 2")
    assert project.train() == dict.fromkeys(STAGES, "ran")
    at = {(name, what): seconds for name, _, seconds, what in project.events()}
    assert at["side@right", "start"] < at["side@left", "end"]
    assert at["side@left", "start"] < at["side@right", "end"]
    assert at["report", "start"] > max(at["side@left", "end"], at["side@right", "end"])


def test_dvc_lock_does_not_tell_which_stage_ended_first(project: Project) -> None:
    project.set("^runtime: {}", "runtime:\n  parallel_stages: 2")
    project.tell("side@left", sleep=3)
    assert project.train() == dict.fromkeys(STAGES, "ran")
    ended = {name: at for name, _, at, what in project.events() if what == "end"}
    assert ended["side@right"] < ended["side@left"]
    lock = project.read("dvc.lock")
    (project.folder / "dvc.lock").unlink()
    project.dvc("repro", "--quiet")
    assert project.read("dvc.lock") == lock


def test_more_threads_than_cores_are_warned_of(project: Project) -> None:
    project.set("^runtime: {}", "runtime:\n  parallel_stages: 2\n  threads: 512")
    code, printed = project.prefloop("run", "--only", "first")
    assert code == 0
    assert "warning: runtime: 2 stages side by side of 512 threads each" in printed


def test_a_stage_that_dies_is_tried_again(project: Project) -> None:
    project.tell("first", die=2)
    assert project.train("first") == {"first": "ran"}
    assert project.ran() == ["first"] * 3

    project.fresh_log()
    project.tell("first", die=9)
    with pytest.raises(StageDied, match="first: .*exited with 137.*.runs/first/output.log"):
        project.train("first", force=True)
    assert project.ran() == ["first"] * 3, "two retries, no more"


def test_what_a_person_has_to_mend_ends_the_run_at_once(project: Project) -> None:
    project.tell("side@left", fail=2)
    code, printed = project.prefloop("run")
    assert code == 2
    assert project.ran().count("side@left") == 1
    assert "report" not in project.ran()
    assert printed.splitlines()[-1] == "error: side@left: bad row 7; mend it"
    assert "Traceback" not in printed

    project.forget("side@left")
    outcomes = project.train()
    assert outcomes["side@left"] == "ran"
    assert outcomes["first"] == "unchanged", "what was finished is not run again"
    assert not (project.folder / ".runs/side@left/error.json").exists()


def running(project: Project, stage: str, process: subprocess.Popen[str]) -> int:
    """Wait until a stage has started; its process id."""
    for _ in range(2400):
        for name, pid, _, _ in project.events():
            if name == stage:
                return pid
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"{stage} has not started within 120 s")


def gone(pid: int, seconds: float) -> bool:
    """Whether a process ends within so many seconds (a zombie has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_nothing_is_left_running(project: Project, number: signal.Signals, expected: int) -> None:
    project.tell("first", sleep=100)
    process = project.start("run")
    stage = running(project, "first", process)
    children = [pid for pid in descendants(process.pid) if "recorder" not in command(pid)]
    assert stage in children
    os.kill(process.pid, number)
    assert gone(stage, 15.0)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == expected
    assert all(gone(pid, 30.0) for pid in children)
    if number != signal.SIGKILL:
        assert "Traceback" not in printed
        assert "interrupted" in printed or number == signal.SIGTERM

    # the next run goes on; nothing that the interrupted one left behind stands in its way
    project.forget("first")
    assert project.train("first") == {"first": "ran"}


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def command(pid: int) -> str:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.mark.slow
def test_one_ray_cluster_serves_the_whole_flow_and_goes_with_it(project: Project) -> None:
    project.set("^runtime: {}", "runtime:\n  workers: 1\n  threads: 1")
    process = project.start("run", "--only", "first", "side")
    running(project, "first", process)
    children = descendants(process.pid)
    assert any("raylet" in command(pid) for pid in children)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    addresses = {line.split(" at ")[1] for line in printed.splitlines() if "note: a cluster at " in line}
    assert printed.count("note: a cluster at ") == 3
    assert len(addresses) == 1
    assert all(gone(pid, 20.0) for pid in children)

    project.tell("first", sleep=100)
    project.fresh_log()
    process = project.start("run", "--only", "first", "--force")
    running(project, "first", process)
    children = descendants(process.pid)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert all(gone(pid, 20.0) for pid in children)
