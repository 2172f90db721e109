"""The tiny recipe, whole: through Prefect, DVC, Ray Train's local mode and MLflow."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.end_to_end.conftest import environment, run_in
from tests.project import Project
from tests.registry import house

STAGES = {
    "prepare", "base", "sft", "preferences", "reward", "policy@ppo", "policy@dpo",
    "evaluate_sft", "evaluate@ppo", "evaluate@dpo", "report",
}  # fmt: skip


def lock_of(clone: Path) -> dict:
    return YAML(typ="safe").load((clone / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def runs_of(clone: Path) -> list:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=1000))


def test_the_flow_runs_every_stage_and_reports(tiny: Path) -> None:
    assert set(lock_of(tiny)) == STAGES
    metrics = json.loads((tiny / "artifacts/report/metrics.json").read_text())
    assert set(metrics) >= {"sft", "reward", "policies"}
    assert 0.0 <= metrics["reward"]["pair_accuracy"] <= 1.0
    for policy in metrics["policies"].values():
        keys = {"gold_mean", "reward_mean", "kl", "win", "lose", "tie", "win_rate", "win_rate_ci", "reward_win_rate"}
        assert keys <= set(policy)
        # each figure is rounded to six decimals on its own
        assert policy["win"] + policy["lose"] + policy["tie"] == pytest.approx(1.0, abs=2e-6)
        assert policy["win_rate"] == pytest.approx(policy["win"] + policy["tie"] / 2, abs=2e-6)
    page = (tiny / ".runs/report/index.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert (tiny / "artifacts/policies/ppo/model/model.safetensors").exists()


def test_every_stage_that_ran_is_a_nested_run_with_its_outputs_hash(tiny: Path) -> None:
    lock = lock_of(tiny)
    runs = runs_of(tiny)
    stages = {run.data.tags["prefloop.stage"]: run for run in runs if "prefloop.stage" in run.data.tags}
    assert set(stages) == STAGES
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = {run.data.tags.get("mlflow.parentRunId") for run in stages.values()}
    assert len(parents) == 1
    assert None not in parents
    for name, run in stages.items():
        for out in lock[name]["outs"]:
            assert out["md5"] in run.data.tags["prefloop.outs"], (name, out["path"])
    assert "objective/kl" in stages["policy@ppo"].data.metrics
    assert {"demonstrations", "prompts", "rows/prompt_in_two_splits"} <= set(stages["prepare"].data.metrics)


def test_a_second_run_runs_nothing_and_is_quick(tiny: Path) -> None:
    before = len(runs_of(tiny))
    started = time.monotonic()
    done = run_in(tiny, tiny.parent / "home", "-m", "flows", "run", hash_seed=2)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 15
    assert len(runs_of(tiny)) == before


def test_dvc_finds_everything_up_to_date(tiny: Path) -> None:
    done = run_in(tiny, tiny.parent / "home", "-m", "dvc", "status", "--json")
    assert json.loads(done.stdout) == {}


def test_dvc_draws_the_plots(tiny: Path) -> None:
    """`dvc plots show` makes one page of the report's tables, every policy's training and every curve of over-optimisation."""
    done = run_in(tiny, tiny.parent / "home", "-m", "dvc", "plots", "show", "--out", str(tiny.parent / "plots"))
    assert done.returncode == 0, done.stderr
    page = (tiny.parent / "plots" / "index.html").read_text(encoding="utf-8")
    drawn = [f"report/data/{name}.csv" for name in ("frontier", "over_optimisation", "reliability", "win_rates")]
    drawn += ["plots/ppo.csv", "plots/dpo.csv", "evaluations/sft/optimisation.csv", "evaluations/ppo/optimisation.csv"]
    for name in drawn:
        assert f"artifacts/{name}" in page, name


def test_the_report_is_an_artifact_of_its_run(tiny: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tiny / 'mlflow.db'}")
    run = next(run for run in runs_of(tiny) if run.data.tags.get("prefloop.stage") == "report")
    assert {each.path for each in client.list_artifacts(run.info.run_id, "report")} == {
        f"report/{name}" for name in ("data", "index.html", "metrics.json", "plots")
    }
    plots = {each.path for each in client.list_artifacts(run.info.run_id, "report/plots")}
    assert {"report/plots/frontier.png", "report/plots/frontier.svg", "report/plots/over_optimisation.svg"} <= plots


@pytest.mark.slow
def test_dvc_repro_alone_gives_the_same_bytes_in_another_clone(tiny: Path, fresh: Callable[[str], Path]) -> None:
    """Another path, an empty cache and home, another PYTHONHASHSEED: an identical dvc.lock, and every stage really trained."""
    other = fresh("somewhere/else")
    done = run_in(other, other.parent / "home", "-m", "dvc", "repro", hash_seed=4711)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert done.stdout.count("Running stage") == len(STAGES)
    assert (other / "dvc.lock").read_bytes() == (tiny / "dvc.lock").read_bytes()
    stages = {run.data.tags.get("prefloop.stage"): run for run in runs_of(other)}
    assert set(stages) == STAGES, "plain `dvc repro` is tracked too, without a parent run"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_version_is_made_again(tiny: Path, tmp_path: Path) -> None:
    """Identical with the cache removed; after one changed parameter it names that parameter. No stage ran in this clone, and
    yet each has its cost."""
    home = tmp_path / "home"
    project = Project(house.copy(tiny, tmp_path / "clone"), environment(home, 3))
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "the tiny recipe, run")
    code, printed = project.prefloop("register", "--policy", "ppo")
    assert code == 0, printed
    [lineage] = (project.folder / "mlruns").rglob("lineage.json")
    cost = json.loads(lineage.read_text(encoding="utf-8"))["cost"]
    ran_in = json.loads(lineage.read_text(encoding="utf-8"))["environment"]
    made_of = STAGES - {"policy@dpo", "evaluate@dpo", "report"}
    assert {facts["threads"] for facts in ran_in.values()} == {"1"}
    assert (set(cost["stages"]), cost["unknown"]) == (made_of, 0)
    for name in ("seconds", "core_seconds"):
        assert min(stage[name] for stage in cost["stages"].values()) > 0
        assert cost["total"][name] == pytest.approx(sum(stage[name] for stage in cost["stages"].values()))

    shutil.rmtree(project.folder / ".dvc" / "cache")
    done = run_in(project.folder, home, "-m", "flows", "reproduce", "models:/prefloop/1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"the outputs of {len(made_of)} stages" in done.stdout
    assert "models:/prefloop/1: identical: " in done.stdout

    params = project.read("params.yaml")
    project.write("other.yaml", params.replace("    steps: 4\n", "    steps: 2\n"))
    done = run_in(project.folder, home, "-m", "flows", "reproduce", "models:/prefloop/1", "--params", "other.yaml")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    at = lines.index("first stage that differs: policy@ppo")
    assert lines[at + 1] == "  parameter policies.ppo.steps: 2 here, 4 there"
