"""The tiny recipe, whole, with two workers on a Ray cluster of two nodes on this host."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.end_to_end.conftest import run_in

CALLS = {
    "base": {"train"}, "sft": {"train"}, "reward": {"train"}, "policy@ppo": {"train"}, "policy@dpo": {"train"},
    "preferences": {"map"}, "evaluate_sft": {"map"}, "evaluate@ppo": {"map"}, "evaluate@dpo": {"map"},
}  # fmt: skip
"""What each stage gives to the cluster; prepare and report compute nothing that is worth handing out."""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # nine worker groups or pairs of actors are started, one after the other
def test_every_stage_that_trains_samples_or_scores_has_an_actor_on_each_node(fresh: Callable[[str], Path]) -> None:
    clone = fresh("cluster")
    home = clone.parent / "home"
    started = run_in(clone, home, "infra/two_nodes.py", "start")
    try:
        assert started.returncode == 0, started.stderr
        yaml = YAML()
        params = yaml.load((clone / "params.yaml").read_text(encoding="utf-8"))
        params["runtime"] = {"workers": 2, "ray": {"address": started.stdout.strip()}}
        yaml.dump(params, clone / "params.yaml")
        done = run_in(clone, home, "-m", "flows", "run")
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    finally:
        run_in(clone, home, "infra/two_nodes.py", "stop")

    lines = [
        json.loads(line) | {"stage": path.parent.parent.name}
        for path in clone.glob(".runs/*/*/placements.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    shown = "\n".join(f"{line['stage']} {line['call']} {line['rank']} {line['node']} {line['actor']}" for line in lines)
    assert {line["stage"] for line in lines} == set(CALLS), shown
    nodes = {line["node"] for line in lines}
    assert len(nodes) == 2, shown
    assert "" not in nodes, shown
    for stage, calls in CALLS.items():
        mine = [line for line in lines if line["stage"] == stage]
        assert {line["call"] for line in mine} >= calls, shown
        assert {line["node"] for line in mine} == nodes, shown
        assert len({line["actor"] for line in mine}) >= 2, shown
    policies = json.loads((clone / "artifacts/report/metrics.json").read_text(encoding="utf-8"))["policies"]
    assert set(policies) == {"ppo", "dpo"}
