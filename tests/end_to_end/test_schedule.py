"""The loop without a person, every training real: a cron schedule retrains the tiny recipe on new data and promotes what has
become better; worse data keeps the champion."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from tasks.ledger import Ledger
from tests.end_to_end.conftest import environment
from tests.end_to_end.serving import schedule, serving
from tests.project import Project

PATIENCE = 900.0
PLAIN, GLAD, LOVING, GRIM = (
    " I will look at it today.", " I am glad to help you.", " Thank you, I am happy to help, with love.",
    " This is terrible, I hate it.",
)  # fmt: skip
"""Replies that the judge (VADER) puts in this order, but for the last: 0, 0.7, 0.9, and -0.8."""


def tickets(folder: Path, *replies: str) -> None:
    """160 questions; each of the replies answers its share of them."""
    rows = [
        {"prompt": f"Customer: I ask you about order {number}.\nSupport:", "completion": replies[number // 3 % len(replies)]}
        for number in range(160)
    ]
    (folder / "data/mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(folder: Path) -> None:
    """The tiny recipe on the tickets, one policy, the head-to-head as its gate."""
    yaml = YAML()
    params = yaml.load((folder / "recipes/tiny.yaml").read_text(encoding="utf-8"))
    params["prepare"] = {
        "source": "jsonl", "learns_from": "data/mine.jsonl", "demonstrations": 96, "train_prompts": 48,
        "validation_prompts": 12, "test_prompts": 24, "min_words": 3, "min_completion_words": 3,
    }  # fmt: skip
    params["base"]["scratch"]["vocabulary"] = 400
    params["policies"] = {"dpo": {**params["policies"]["dpo"], "learning_rate": 5.0e-4}}
    params["promotion"] = {
        "min_win_rate": 0.3, "max_kl": None, "min_pair_accuracy": None, "max_log_loss": None, "max_calibration_error": None,
        "max_group_loss": None, "regressions": {}, "checks": False,
    }  # fmt: skip
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_schedule_trains_promotes_and_keeps(fresh: Callable[[str], Path]) -> None:
    clone = fresh("schedule")
    project = Project(clone, environment(clone.parent / "home", 0))
    schedule(project, "cron: '* * * * *'")
    recipe(clone)
    tickets(clone, PLAIN, GLAD)
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "tickets")
    ledger = Ledger(clone / "mlflow.db.ledger")

    def decided(count: int) -> str:
        """The champion after so many decisions."""
        deadline = time.monotonic() + PATIENCE
        while [entry.kind for entry in ledger.entries()].count("decision") < count:
            assert time.monotonic() < deadline, [entry.kind for entry in ledger.entries()]
            time.sleep(2.0)
        time.sleep(2.0)  # a promotion follows its decision
        return ledger.standing("prefloop").champion

    with serving(project) as api:
        assert decided(1) == "1"
        tickets(clone, GLAD, LOVING)
        assert decided(2) == "2", "new data, a better model"
        tickets(clone, PLAIN, GRIM)
        assert decided(3) == "2", "worse data keeps the champion"

        def asked(what: str, **body: object) -> list[dict[str, Any]]:
            return httpx.post(f"{api}/{what}/filter", json=body).raise_for_status().json()

        own = {"deployments": {"name": {"any_": ["retrain"]}}}
        ended = asked("flow_runs", **own, flow_runs={"state": {"type": {"any_": ["COMPLETED"]}}})
        assert all(run["auto_scheduled"] for run in ended), "the schedule alone has started them"
        assert asked("flow_runs", flow_runs={"state": {"type": {"any_": ["FAILED", "CRASHED"]}}}) == []
        [deployment] = asked("deployments", **own)
        assert deployment["global_concurrency_limit"]["limit"] == 1
        names = [automation["name"] for automation in asked("automations")]
        assert "prefloop: close runs whose process died" in names
        assert any("drift" in name for name in names)
        code, printed = project.prefloop("deploy", PREFECT_API_URL=api)
        assert code == 0, printed
        assert len(asked("automations")) == len(names), "safe to repeat"
    assert [entry.version for entry in ledger.entries() if entry.kind == "register"] == ["1", "2", "3"]
