"""A real Prefect server, a real worker, a cron schedule that fires: the loop without a person."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

import pytest

from tasks import registry
from tests.project import ROOT, Project
from tests.registry import house

PATIENCE = 900.0
"""Seconds on a machine that others use as well; a tick comes every minute."""


def wait(what: str, done: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for: {what}"
        time.sleep(3.0)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_schedule_retrains_promotes_and_keeps(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

    from flows import deploy, environment

    shutil.copy2(ROOT / "prefect.yaml", project.folder / "prefect.yaml")
    project.set("cron: 0 3 ", "cron: '* * * * *' # ", "prefect.yaml")
    project.set(r"cron: 30 \* \* \* \*", "cron: 0 0 1 1 *", "prefect.yaml")
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_", "PREFLOOP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(project.folder / ".prefect"))
    monkeypatch.setenv("HOME", project.environment["HOME"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    environment.prepare(project.folder)
    champion = lambda: registry.opened(project.folder).standing().champion  # noqa: E731
    kinds = lambda: [entry.kind for entry in registry.opened(project.folder).ledger.entries()]  # noqa: E731
    with deploy.serving(project.folder, poll=2.0), get_client(sync_client=True) as client:
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
