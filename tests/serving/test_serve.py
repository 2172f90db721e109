"""A real Prefect server, a real worker: alarms, people and dead processes, and what becomes of them."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import psutil
import pytest

from tasks import promotion, registry
from tests.project import ROOT, Project
from tests.registry import house
from tests.registry.test_monitor import log, served

PATIENCE = 900.0
"""Seconds on a machine that others use as well."""
NEVER = "0 0 1 1 *"


def wait(what: str, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for: {what}"
        time.sleep(3.0)


@contextmanager
def serving(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """What `prefloop serve` starts, nothing by a clock; the worker and a client."""
    from prefect.client.orchestration import get_client

    from flows import deploy, environment

    shutil.copy2(ROOT / "prefect.yaml", project.folder / "prefect.yaml")
    project.set("cron: 0 3 .*", f"cron: '{NEVER}'", "prefect.yaml")
    project.set("cron: 30 .*", f"cron: '{NEVER}'", "prefect.yaml")
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "PREFLOOP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(project.folder / ".prefect"))
    monkeypatch.setenv("HOME", project.environment["HOME"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    environment.prepare(project.folder)
    with deploy.serving(project.folder, poll=2.0) as worker, get_client(sync_client=True) as client:
        yield worker, client


def started(project: Project, flow: str, **parameters: str) -> Any:
    """The id of a new run of a deployment."""
    from prefect.deployments import run_deployment

    parameters["root"] = str(project.folder)
    return run_deployment(f"{flow}/{flow}", parameters=parameters, timeout=0, as_subflow=False).id


def reaches(client: Any, run: Any, state: str) -> None:
    """Wait until a flow run is in this state; one that has ended in another will never be."""

    def there() -> bool:
        now = client.read_flow_run(run).state
        assert now.name == state or not now.is_final(), f"{now.name}: {now.message}"
        return bool(now.name == state)

    wait(f"the flow run to be {state}", there)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_reviewer_answers_in_prefects_page(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page sends wakes a suspended flow run. The answer is about what was asked, whatever the folder holds by then."""
    project.write("params.yaml", house.PARAMS.replace("promotion:\n", "promotion:\n  approval: true\n"))
    house.record(project, "ask a person")
    office = registry.opened(project.folder)
    registry.register(office, "ppo")
    with serving(project, monkeypatch) as (_, client):
        run = started(project, "promote", version="1")
        reaches(client, run, "Suspended")
        assert office.standing().champion == "", "nobody has answered"
        house.candidate(project, 2, 0.8)
        client.resume_flow_run(run, run_input={"approve": True, "reason": "read 50 answers", "who": "ann@example.org"})
        reaches(client, run, "Completed")
        assert office.standing().champion == "1"

        registry.register(office, "ppo")
        run = started(project, "promote")
        reaches(client, run, "Suspended")
        client.resume_flow_run(run, run_input={"approve": False, "reason": "too kind"})
        reaches(client, run, "Completed")
    assert office.standing().champion == "1"
    entries = office.ledger.entries()
    decisions = [entry for entry in entries if entry.kind == "decision"]
    given = [entry for entry in entries if entry.kind == "approval"]
    assert [(one.version, one.body["approved"], one.body["who"], one.body["reason"]) for one in given] == [
        ("1", True, "ann@example.org", "read 50 answers"),
        ("2", False, "answered in Prefect's page", "too kind"),
    ]
    assert [one.body["evidence"] for one in given] == [one.hash for one in decisions]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_alarms_in_a_row_start_a_retraining(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.schemas.filters import DeploymentFilter

    office = registry.opened(project.folder)
    promotion.promote(office, registry.register(office, "ppo")[0])
    refusing = [(prompt, "I cannot help with that.") for prompt, _ in served(project, 2)]
    with serving(project, monkeypatch) as (_, client):
        retrainings = lambda: client.read_flow_runs(deployment_filter=DeploymentFilter(name={"any_": ["retrain"]}))  # noqa: E731
        by_alarm = lambda: [run for run in retrainings() if not run.auto_scheduled]  # noqa: E731
        for hour in (1, 2):
            assert by_alarm() == []
            log(project.folder / "data/served/replies.jsonl", refusing, "1", hour)
            reaches(client, started(project, "monitor"), "Completed")
        wait("the events", lambda: (happened("prefloop.finding"), happened("prefloop.drift")) == (2, 1))
        wait("the retraining", by_alarm)
        [run] = by_alarm()
        assert run.parameters["reason"] == "drift"
        reaches(client, run.id, "Completed")


def happened(event: str) -> int:
    """How many events of this name the server has."""
    found = httpx.post(f"{os.environ['PREFECT_API_URL']}/events/filter", json={"filter": {"event": {"name": [event]}}})
    return int(found.raise_for_status().json()["total"])


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """An address that keeps what is sent to it."""
    heard: list[str] = []

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ear) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", heard
        server.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_whose_process_died_is_closed_and_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the worker and all below it: nobody is left to say so, no heartbeat follows, the server closes the run."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    from flows import deploy

    project.write("dvc.yaml", project.read("dvc.yaml").replace('"cmd": "mkdir', '"cmd": "sleep 600; mkdir', 1))
    project.git("commit", "--quiet", "--all", "--message", "a stage that takes its time")
    monkeypatch.setattr(deploy, "BEAT", 12)  # Prefect beats every 30 s at most: three of ours are the shortest that tell
    with listening() as (url, heard), serving(project, monkeypatch) as (worker, client):
        CustomWebhookNotificationBlock(name="ops", url=url, json_data={"text": "{{subject}}"}).save("ops")
        monkeypatch.setenv(deploy.NOTIFY, "custom-webhook/ops")
        deploy.deploy(project.folder)
        run = started(project, "retrain")
        below = psutil.Process(worker.pid)
        wait("the stage to run", lambda: "sleep" in [one.name() for one in below.children(recursive=True)])
        assert client.read_flow_run(run).state.name == "Running"
        for process in [below, *below.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        reaches(client, run, "Crashed")
        assert "no heartbeat" in client.read_flow_run(run).state.message
        wait("the message", lambda: "prefloop: retrain Crashed" in heard)
