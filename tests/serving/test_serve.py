"""A real Prefect server, a real worker: schedules, alarms, people and dead processes, and what becomes of them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tasks import registry
from tests.project import ROOT, Project
from tests.registry import house

PATIENCE = 900.0
"""Seconds on a machine that others use as well; a tick comes every minute."""
NEVER = "0 0 1 1 *"


def wait(what: str, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for: {what}"
        time.sleep(3.0)


@contextmanager
def serving(project: Project, monkeypatch: pytest.MonkeyPatch, retrain: str = NEVER) -> Iterator[tuple[Any, Any]]:
    """What `prefloop serve` starts, the flow retrain by this cron line, nothing else by a clock; the worker and a client."""
    from prefect.client.orchestration import get_client

    from flows import deploy, environment

    shutil.copy2(ROOT / "prefect.yaml", project.folder / "prefect.yaml")
    project.set("cron: 0 3 .*", f"cron: '{retrain}'", "prefect.yaml")
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
def test_a_schedule_retrains_promotes_and_keeps(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

    from flows import deploy

    champion = lambda: registry.opened(project.folder).standing().champion  # noqa: E731
    kinds = lambda: [entry.kind for entry in registry.opened(project.folder).ledger.entries()]  # noqa: E731
    with serving(project, monkeypatch, retrain="* * * * *") as (_, client):
        wait("the first champion", lambda: champion() == "1")
        house.give(project, 2, 0.8)
        wait("new data to be promoted", lambda: champion() == "2")
        house.give(project, 3, 0.05)
        wait("worse data to be judged", lambda: kinds().count("decision") == 3)
        assert champion() == "2", "worse data keeps the champion"

        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state={"type": {"any_": ["COMPLETED"]}}),
            deployment_filter=DeploymentFilter(name={"any_": ["retrain"]}),
        )
        assert all(run.auto_scheduled for run in runs), "the schedule alone has started them"
        failed = FlowRunFilter(state={"type": {"any_": ["FAILED", "CRASHED"]}})
        assert client.read_flow_runs(flow_run_filter=failed) == []
        assert client.read_deployment_by_name("retrain/retrain").global_concurrency_limit.limit == 1
        names = [automation.name for automation in client.read_automations()]
        assert "prefloop: close runs whose process died" in names
        assert any("drift" in name for name in names)
        assert deploy.deploy(project.folder) == ["collect", "monitor", "promote", "retrain"], "safe to repeat"
        assert len(client.read_automations()) == len(names)


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
