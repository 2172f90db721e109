"""The loop on real git, DVC, MLflow and Prefect: every round a commit, an interrupted one goes on, the champion is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.errors import ConfigurationError
from tasks import registry, retraining, rounds, versions, worktrees
from tests.project import Project
from tests.registry import house
from tests.registry.test_retrain import served  # noqa: F401

JUDGE = "  judge:\n    kind: callable\n    callable: tests.tasks.tongue:vowels\n  min_margin: 0.0\n  precision: float32\n"
COLLECT = "collect:\n  prompts: 4\n  answers: 3\n  pairs: 4\n  uncertain: 0.0\n"


@pytest.fixture
def looping(served: Project, monkeypatch: pytest.MonkeyPatch) -> Project:  # noqa: F811
    """A project whose stage prepare reads the pool, and whose judge tells a small model's answers apart."""
    for name in ("MLFLOW_TRACKING_URI", "PREFLOOP_LEDGER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    served.write("params.yaml", house.PARAMS.replace("  judge:\n    kind: lexicon\n", JUDGE) + COLLECT)
    served.write("data/preferences/README.md", "people\n")
    graph = json.loads(served.read("dvc.yaml"))
    graph["stages"]["prepare"]["deps"].append("data/preferences")
    served.write("dvc.yaml", json.dumps(graph, indent=1))
    metrics = served.folder / "given/artifacts/reward/metrics.json"
    counts = {"train_pairs": 8, "validation_pairs": 2, "test_pairs": 2}
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | counts))
    served.git("add", "--all")
    served.git("commit", "--quiet", "--all", "--message", "a pool")
    house.record(served, "candidate 1, with a pool")
    return served


@pytest.mark.slow
def test_every_round_is_a_commit_and_an_interrupted_loop_goes_on(looping: Project) -> None:
    from flows.iterate import iterate

    root = looping.folder
    head, status = looping.git("rev-parse", "HEAD"), looping.git("status", "--porcelain")
    table = iterate(str(root), 1, "ppo")
    assert "1 rounds; the best is round 0" in table
    loop = rounds.opened(root, "ppo")
    assert [one.number for one in loop.rounds] == [0, 1]
    first = rounds.commits(loop)
    assert len(first) == 2
    assert looping.git("show", "--name-only", "--format=", first[1]).split() == [
        "data/preferences/round-001.parquet.dvc", "dvc.lock", "rounds.json"
    ]  # fmt: skip
    assert "source: both" in looping.git("show", f"{first[0]}:params.yaml")

    # interrupted in round 2, after its pairs were collected
    rounds.ask(loop, 2)
    collected = loop.worktree / "data/preferences/round-002.parquet"
    before = (collected.read_bytes(), collected.stat().st_mtime_ns)
    table = iterate(str(root), 5, "ppo")
    assert (collected.read_bytes(), collected.stat().st_mtime_ns) == before
    loop = rounds.opened(root, "ppo")
    assert [one.number for one in loop.rounds] == [0, 1, 2], "the given evaluations are all alike: no gain for two rounds"
    assert "ended after round 2: gold has not grown for 2 rounds; the best is round 0" in table
    assert rounds.commits(loop)[:2] == first, "what was whole stays"
    assert (root / ".runs/iterate/rounds.csv").read_text().count("\n") == 4
    assert (root / ".runs/iterate/rounds.svg").read_text().startswith("<?xml")

    # nothing changed under a person's hands; any round can be had again
    assert (looping.git("rev-parse", "HEAD"), looping.git("status", "--porcelain")) == (head, status)
    with worktrees.temporary(root, first[1], "again") as folder:
        worktrees.pull_inputs(folder)
        assert (folder / "data/preferences/round-001.parquet").exists()
        assert not (folder / "data/preferences/round-002.parquet").exists()
        assert versions.plan(folder).names("run") == []

    # another loop is not this one
    looping.set("seed: 1", "seed: 2")
    with pytest.raises(ConfigurationError, match="began with another params: .*git branch -D iterate"):
        rounds.opened(root, "ppo")


@pytest.mark.slow
def test_the_champion_is_asked_and_retraining_learns_from_the_round(looping: Project) -> None:
    from flows.collect import collect

    root = looping.folder
    office = registry.opened(root)
    version = registry.register(office, "ppo")[0]
    office.ledger.promote(office.name, version.number, "", {"decision": 0}, "promote:test")
    registry.converge(office)
    result = collect(str(root))
    assert result["file"] == "data/preferences/round-001.parquet"
    note = YAML(typ="safe").load((root / "data/preferences/round-001.parquet.dvc").read_text())
    assert note["meta"]["source"].startswith("answers of models:/prefloop/1 (content ")
    assert collect(str(root), 0, "ppo")["file"] == "data/preferences/round-002.parquet"
    worktree: Path = retraining.prepare(root)
    for number in (1, 2):
        name = f"data/preferences/round-00{number}.parquet"
        assert (worktree / name).read_bytes() == (root / name).read_bytes(), "not committed yet, and there all the same"
    assert "prepare" in versions.plan(worktree).names("run")
