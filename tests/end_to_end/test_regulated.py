"""The recipe `regulated`, whole, as docs/promotion.md walks it: from tickets with personal data to an audited champion."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pandas as pd
import pytest
from ruamel.yaml import YAML

from tests.end_to_end.conftest import environment, run_in
from tests.end_to_end.serving import schedule, serving
from tests.project import Project

PERSONAL = re.compile(rb"customer\d+@example\.org|\+1 \d{3} \d{3} \d{4}")
"""What the made-up tickets have of a customer."""
PATIENCE = 600.0
GATES = [
    "win rate against the SFT model: lower end", "KL to the SFT model (nats a sequence)",
    "reward model: held-out pairs in order", "reward model: log loss on held-out pairs",
    "reward model: calibration error on held-out pairs",
    "eos_rate against the SFT model", "distinct_2 against the SFT model", "repetition against the SFT model",
    "perplexity against the SFT model", "eos_rate against the SFT model in group", "win rate in group",
    "reads as English: perplexity against SFT's", "stays varied: distinct-2 against SFT's",
    "doctor", "lineage", "pushed", "manifest",
]  # fmt: skip
"""Every gate that there is; two name the worst group of customers."""


def shrink(recipe: Path) -> None:
    """Another model, trained from scratch: the recipe's data, masking, judge, gates, approval and registry stay as they are.

    Two bounds are wider, so that no rounding decides: on thirty prompts such a model passes the recipe's own narrowly.
    """
    yaml = YAML()
    found = yaml.load(recipe.read_text(encoding="utf-8"))
    scratch = {"vocabulary": 1024, "hidden_size": 128, "layers": 4, "heads": 4, "context": 64, "steps": 120, "batch_size": 8}
    found["base"] = {"source": "scratch", "learns_from": "artifacts/prepared/corpus.parquet", "scratch": scratch}
    whole, few = {"adapter": "none", "precision": "float32"}, {"batch_size": 8, "micro_batch_size": 8}
    found["sft"].update(whole, num_train_epochs=3)
    found["reward"].update(whole, **few, layers=0, learning_rate=5.0e-4, num_train_epochs=2)
    found["policies"]["dpo"].update(whole, learning_rate=2.0e-4, num_train_epochs=3)
    found["preferences"]["precision"] = found["evaluate"]["precision"] = "float32"
    found["promotion"]["min_win_rate"] = 0.4
    found["promotion"]["regressions"]["eos_rate"] = 0.2
    found["runtime"] = {"threads": 1, "parallel_stages": 2}
    with recipe.open("w", encoding="utf-8") as file:
        yaml.dump(found, file)


def reaches(url: str, run: str, name: str) -> None:
    """Wait until a flow run is in this state."""
    deadline = time.monotonic() + PATIENCE
    while (state := httpx.get(f"{url}/flow_runs/{run}").json()["state"])["name"] != name:
        assert state["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), state
        assert time.monotonic() < deadline, state
        time.sleep(2.0)


def personal(folder: Path) -> list[str]:
    """The files below a folder in which a customer's address or number stands, tables read as text."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if content[:4] == b"PAR1":
            content = pd.read_parquet(path).to_csv().encode()
        if PERSONAL.search(content):
            found.append(str(path))
    return found


@pytest.fixture
def project(fresh: Callable[[str], Path], tmp_path: Path) -> Project:
    """A clone whose remote is a bare repository, with the small recipe committed."""
    clone = fresh("regulated")
    project = Project(clone, environment(clone.parent / "home", 0))
    project.git("init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    project.git("remote", "set-url", "origin", str(tmp_path / "origin.git"))
    shrink(clone / "recipes" / "regulated.yaml")
    schedule(project)
    project.git("add", "--all")
    project.git("commit", "--quiet", "--allow-empty", "--message", "a smaller model")
    return project


def succeeds(project: Project, *arguments: str) -> str:
    """What a command prints; it must end well."""
    code, printed = project.prefloop(*arguments)
    assert code == 0, f"prefloop {' '.join(arguments)}: {printed[-5000:]}"
    return printed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_from_tickets_to_an_audited_champion(project: Project) -> None:
    folder = project.folder
    done = run_in(folder, folder.parent / "home", "-m", "flows", "run", "--recipe", "regulated")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]

    # personal data: every address and number is masked in what is trained on, said, stored and logged
    source = (folder / "data/support/tickets.jsonl").read_bytes()
    quality = json.loads(project.read("artifacts/prepared/quality.json"))
    assert quality["personal_data"] == {"email": source.count(b"Write to "), "phone": source.count(b"Call me at ")}
    learnt = pd.read_parquet(folder / "artifacts/prepared/demonstrations.parquet")
    assert learnt["prompt"].str.contains("[email]", regex=False).any()
    assert [found for place in ("artifacts", ".runs", "mlruns") for found in personal(folder / place)] == []
    assert not PERSONAL.search((folder / "mlflow.db").read_bytes())

    # a version, whose tag and data leave this machine
    succeeds(project, "commit")
    assert "models:/support/1: registered" in succeeds(project, "register", "--policy", "dpo")
    succeeds(project, "pull", "1", "--to", "served")
    card = project.read("served/README.md")
    assert "Data: CC0-1.0 (made up for this project)" in card
    assert "It promises refunds and replacements that nobody has checked" in card

    with serving(project) as url:
        # the flow suspends and asks; nobody is champion before a person has answered
        deployment = httpx.get(f"{url}/deployments/name/promote/promote").json()["id"]
        run = httpx.post(f"{url}/deployments/{deployment}/create_flow_run", json={}).json()["id"]
        reaches(url, run, "Suspended")
        assert project.prefloop("champion")[0] == 1
        printed = succeeds(project, "approve", "1", "--reason", "read 50 answers, none promises money")
        assert "models:/support/1: approved, and the champion" in printed
        reaches(url, run, "Completed")
        assert "models:/support/1" in succeeds(project, "champion")

        # replies like those of the evaluation are no drift; all signals are judged
        answers = pd.read_parquet(folder / "artifacts/evaluations/dpo/samples.parquet")
        drawn = answers[answers["answer"] != "greedy"].sample(500, replace=True, random_state=1)
        rows = [
            {"prompt": row.prompt, "reply": row.text, "model_version": "1", "time": f"2026-01-01T{at // 60:02}:{at % 60:02}Z"}
            for at, row in enumerate(drawn.itertuples())
        ]
        project.write("data/served/replies.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        succeeds(project, "monitor")
    judged = json.loads(project.read(".runs/monitor/windows.jsonl"))
    assert {one["signal"] for one in judged["findings"]} == {
        "prompt_tokens", "reply_tokens", "refusal", "repetition", "kl", "reward", "embedding"
    }  # fmt: skip

    # the record: who approved what, on which evidence; its chain worked out again
    assert "the chain holds" in succeeds(project, "audit", "--export", "ledger.jsonl")
    entries = [json.loads(line) for line in project.read("ledger.jsonl").splitlines()]
    assert [entry["kind"] for entry in entries] == ["register", "decision", "question", "approval", "promote"]
    before = "0" * 64
    for entry in entries:
        content = {key: value for key, value in entry.items() if key != "hash"}
        assert entry["previous"] == before
        assert entry["hash"] == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        before = entry["hash"]
    _, decision, _, approval, promoted = entries
    gates = decision["body"]["gates"]
    assert [gate["name"] for gate in gates if not gate["passed"]] == []
    assert len(gates) == len(GATES)
    assert [name for gate, name in zip(gates, GATES, strict=True) if not gate["name"].startswith(name)] == []
    assert None not in [gate["value"] for gate in gates]
    assert approval["body"] == {
        "approved": True, "reason": "read 50 answers, none promises money", "who": "t@example.org",
        "decision": decision["number"], "evidence": decision["hash"],
    }  # fmt: skip
    assert promoted["body"]["approval"] == approval["number"]

    # a customer asks for deletion
    assert "models:/support/1  champion" in succeeds(project, "impact", "data/support/tickets.jsonl")
    ids = {split: set(learnt[learnt["split"] == split]["id"]) for split in ("train", "test")}
    assert "models:/support/1  champion" in succeeds(project, "impact", min(ids["train"]))
    assert "no version learned from" in succeeds(project, "impact", min(ids["test"]))
