"""Served replies of a registered champion: read, judged once, acted upon."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.data.replies import read_replies
from pipelines.errors import DataError
from tasks import monitoring, promotion, registry
from tests.project import Project
from tests.registry import house

START = datetime(2026, 1, 1, tzinfo=UTC)


def log(path: Path, rows: list[tuple[str, str]], version: str, hour: int, vote: int | None = None) -> None:
    """Append replies, a second apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for second, (prompt, reply) in enumerate(rows):
            time = (START + timedelta(hours=hour, seconds=second)).isoformat()
            row = {"prompt": prompt, "reply": reply, "model_version": f"models:/prefloop/{version}", "time": time}
            file.write(json.dumps(row | ({} if vote is None else {"vote": vote})) + "\n")


def served(project: Project, seed: int) -> list[tuple[str, str]]:
    """500 replies like those of the evaluation, drawn again with replacement: no drift."""
    samples = pd.read_parquet(project.folder / "artifacts/evaluations/ppo/samples.parquet")
    rows = samples[samples["answer"] != "greedy"].sample(500, replace=True, random_state=seed)
    return list(zip(rows["prompt"], rows["text"], strict=True))


@pytest.mark.slow
def test_a_window_is_judged_once_and_two_alarms_are_drift(project: Project) -> None:
    office = registry.opened(project.folder)
    promotion.promote(office, registry.register(office, "ppo")[0])
    path = project.folder / "data/served/replies.jsonl"
    clean = served(project, 1)
    log(path, clean[:499], "1", 0)
    assert monitoring.observe(office, path)["rows"] == 499, "not whole yet"
    log(path, clean[499:], "1", 1)
    result = monitoring.observe(office, path)
    assert (result["rows"], result["level"], result["action"]) == (500, "none", "")
    assert {finding["signal"] for finding in result["findings"]} == {
        "prompt_tokens", "reply_tokens", "refusal", "repetition", "embedding"
    }  # fmt: skip
    assert monitoring.observe(office, path)["rows"] == 0, "these were judged"

    refusing = [(prompt, "I cannot help with that.") for prompt, _ in served(project, 2)]
    log(path, refusing, "7", 1)
    assert monitoring.observe(office, path)["rows"] == 0, "of another version"
    log(path, refusing, "1", 2)
    result = monitoring.observe(office, path)
    assert (result["level"], result["alarms"], result["action"]) == ("alarm", 1, "")
    assert "refusal" in {finding["signal"] for finding in result["findings"] if finding["level"] == "alarm"}
    log(path, refusing, "1", 3)
    result = monitoring.observe(office, path)
    assert (result["alarms"], result["action"]) == (2, "drift")
    assert [one["level"] for one in monitoring.windows(project.folder)] == ["none", "alarm", "alarm"]


@pytest.mark.slow
def test_a_proven_loss_rolls_back(project: Project) -> None:
    office = registry.opened(project.folder)
    promotion.promote(office, registry.register(office, "ppo")[0])
    house.candidate(project, 2, 0.8)
    promotion.promote(office, registry.register(office, "ppo")[0])
    path = project.folder / "data/served/replies.jsonl"
    hateful = [(prompt, " thy foul and bloody villain, hate and death;") for prompt, _ in served(project, 3)]
    log(path, hateful, "2", 0, vote=0)
    result = monitoring.observe(office, path)
    assert result["level"] == "alarm"
    assert result["decay"]["interval"][1] < 0.5
    assert result["action"] == "rolled back"
    assert result["votes"] == {"up": 0.0, "interval": result["votes"]["interval"], "count": 500}
    assert office.standing().champion == "1"
    assert office.registry.aliases()["champion"] == "1"
    assert [entry.kind for entry in office.ledger.entries()][-2:] == ["rollback", "incident"]


def test_the_scorers_are_those_that_the_champion_was_trained_with(tmp_path: Path) -> None:
    """The reward model stands on the SFT model: without that one it scores nothing."""
    made = {"sft": "a1", "reward": "b1"}

    def lock(**changed: str) -> dict:
        return {name: {"outs": [{"path": f"artifacts/{name}", "md5": md5}]} for name, md5 in (made | changed).items()}

    for folder in ("artifacts/sft/model", "artifacts/reward"):
        (tmp_path / folder).mkdir(parents=True)
    assert monitoring.scorers(tmp_path, lock()) == [], "nothing was run here"
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": lock()}))
    sft, reward = ["--sft", str(tmp_path / "artifacts/sft/model")], ["--reward", str(tmp_path / "artifacts/reward")]
    assert monitoring.scorers(tmp_path, lock()) == sft + reward
    assert monitoring.scorers(tmp_path, lock(reward="b2")) == sft
    assert monitoring.scorers(tmp_path, lock(sft="a2")) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"', r"replies.jsonl:1: not a line of JSON"),
        ("[1]", "replies.jsonl:1: expected an object, got list"),
        ('{"prompt": "a", "reply": "b", "time": "2026-01-01"}', "missing: model_version; found: prompt, reply, time"),
        ('{"prompt": "a", "reply": 3, "model_version": "1", "time": "2026-01-01"}', "replies.jsonl:1 reply: expected a string"),
        ('{"prompt": "a", "reply": "b", "model_version": "new", "time": "2026-01-01"}', "model_version: expected a number"),
        ('{"prompt": "a", "reply": "b", "model_version": "1", "time": "noon"}', "time: .*; write ISO 8601"),
    ],
)
def test_a_broken_log_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "replies.jsonl").write_text(text + "\n")
    with pytest.raises(DataError, match=said):
        read_replies(tmp_path / "replies.jsonl")


def test_parquet_is_read_alike(tmp_path: Path) -> None:
    log(tmp_path / "a.jsonl", [("p", "r"), ("q", "s")], "3", 0, vote=1)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    one, other = read_replies(tmp_path / "a.jsonl"), read_replies(tmp_path / "a.parquet")
    assert one["version"].tolist() == other["version"].tolist() == ["3", "3"]
    assert one["time"].tolist() == other["time"].tolist()
    assert np.array_equal(one["vote"], other["vote"])
