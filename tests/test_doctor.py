"""``prefloop doctor`` on a finished run: a policy, a file, an MLflow run, everything; for people and for machines."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.entities import Metric

from pipelines import doctor
from pipelines.__main__ import run_command
from pipelines.adapters import recorder
from pipelines.data.tables import write_table
from pipelines.diagnosis import examine, method_of
from pipelines.diagnosis.finding import Record
from pipelines.errors import ConfigurationError
from pipelines.journal import Journal
from tests.diagnosis.histories import at, on_policy
from tests.evaluation.synthetic import write_run

ROOT = Path(__file__).resolve().parent.parent
SICK = on_policy(**{"policy/clipfrac": at(10, 0.35, 0.1)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a finished run of the default recipe's policies; PPO's clip fraction was too high from step 10 on."""
    write_run(tmp_path, {"ppo": "ppo", "dpo": "dpo"}, prompts=16)
    (tmp_path / "params.yaml").write_bytes((ROOT / "recipes" / "shakespeare.yaml").read_bytes())
    write_table(SICK, tmp_path / "artifacts" / "policies" / "ppo" / "history.parquet")
    return tmp_path


def asked(root: Path, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = run_command("doctor", arguments, root)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_all_of_a_run_for_machines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = asked(root, "--json", capsys=capsys)
    made = json.loads(said)
    assert code == 0
    assert set(made["findings"]) == {"sft", "reward", "ppo", "dpo"}
    assert "ppo: D8 clip fraction" in made["blocking"]
    (found,) = [one for one in made["findings"]["ppo"] if one["detector"] == "D8"]
    assert (found["first_step"], found["blocks"], found["causes"][0]) == (14, True, "the learning rate is too high")
    assert set(made["attributions"]) == {"ppo", "dpo"}


def test_one_policy_for_people(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = asked(root, "ppo", capsys=capsys)
    assert code == 0
    assert said.startswith("ppo: 1 alarms, 0 warnings")
    assert "alarm D8, clip fraction, from step 14" in said
    assert "likely: the learning rate is too high; or " in said
    assert "guarantee nothing" in said
    assert "dpo" not in said


def test_a_file_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = asked(root, str(root / "artifacts" / "policies" / "ppo" / "history.parquet"), capsys=capsys)
    assert "alarm D8" in said


def test_what_is_not_there_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = asked(root, "pppo", capsys=capsys)
    assert code == 3
    assert "neither a policy nor a file.parquet nor an MLflow run; there are: sft, reward, ppo, dpo" in said
    (root / "artifacts" / "policies" / "dpo" / "history.parquet").unlink()
    code, said = asked(root, "dpo", capsys=capsys)
    assert (code, "no history.parquet" in said) == (2, True)
    code, said = asked(root, str(root / "none.parquet"), capsys=capsys)
    assert code == 2


def test_an_mlflow_run_says_what_its_history_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics of the store, final figures left out, give the same findings as the file."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client, experiment = recorder.connect(root)
    run = client.create_run(experiment, tags={"prefloop.stage": "policy@ppo"}).info.run_id
    columns = ("objective/kl", "objective/kl_se", "policy/clipfrac", "beta")
    rows = SICK.head(20).to_dict("records")
    client.log_batch(run, [Metric(name, float(row[name]), 1, int(row["step"])) for row in rows for name in columns])
    final = {"policy/clipfrac": 0.9, "time/seconds": 3.0, "alone": 1.0}  # behind the last step's
    client.log_batch(run, [Metric(name, value, 2, 20) for name, value in final.items()])
    made = doctor.examined(root, run)
    expected = examine(Record(method_of(columns), SICK.head(20)[["step", *columns]]))
    assert made.findings == {"ppo": expected}
    assert [one.detector for one in expected] == ["D8"]
    with pytest.raises(ConfigurationError, match="not in the store"):
        doctor.examined(root, "0" * 32)


def test_changed_hashes_are_read_from_the_recorded_lock(root: Path) -> None:
    """The lock in git names another reward model and other parameters than the one in place."""
    lock = "stages:\n  policy@ppo:\n    deps:\n    - path: artifacts/reward\n      md5: {}\n    params:\n      params.yaml: {}\n"
    git: list[Any] = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (root / "dvc.lock").write_text(lock.format("aaa", 1))
    for arguments in (["init", "--quiet"], ["add", "dvc.lock"], ["commit", "--quiet", "--message", "a run"]):
        subprocess.run([*git, *arguments], cwd=root, check=True)
    assert doctor._changed(root, "policy@ppo") == []
    (root / "dvc.lock").write_text(lock.format("bbb", 2))
    assert doctor._changed(root, "policy@ppo") == ["artifacts/reward", "parameters"]
    assert doctor._changed(root, "policy@dpo") is None


def test_the_journal_is_of_the_run_that_made_what_is_there(root: Path) -> None:
    """Steps 12 to 14 took four times as long: a stall (D25), unless another run's outputs have been restored since."""
    folder = root / ".runs" / "policy@ppo"
    (folder / "key").mkdir(parents=True)
    journal = Journal(folder / "key" / "timings.jsonl")
    for step in range(1, 16):
        journal.log(step, 15, {"loss": 0.5}, {"step_seconds": 4.0 if step in (12, 13, 14) else 1.0})
    lock = "stages:\n  policy@ppo:\n    outs:\n    - path: artifacts/policies/ppo\n      md5: {}.dir\n"
    (folder / "last.json").write_text(json.dumps({"outs": {"artifacts/policies/ppo": "aaa.dir"}}))
    for md5, expected in (("aaa", ["D8", "D25"]), ("bbb", ["D8"])):
        (root / "dvc.lock").write_text(lock.format(md5))
        assert [one.detector for one in doctor.examined(root, "ppo").findings["ppo"]] == expected


def test_what_a_run_has_done_by_itself_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    actions = [{"step": 14, "detector": "D8", "action": "lower_rate", "after": 14},
               {"step": 20, "detector": "D9", "action": "roll_back", "after": 10}]  # fmt: skip
    (root / "artifacts" / "policies" / "ppo" / "actions.json").write_text(json.dumps(actions))
    _, said = asked(root, capsys=capsys)
    assert said.count("acted at") == 2
    assert "  acted at step 14: halved the learning rate (D8, clip fraction)\n" in said
    assert "  acted at step 20: rolled back to step 10 (D9, entropy collapse)\n" in said
    assert doctor.examined(root).as_json()["actions"] == {"ppo": actions}


def test_a_history_is_what_a_file_must_hold(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"loss": [1.0]}), tmp_path / "other.parquet")
    assert run_command("doctor", [str(tmp_path / "other.parquet")], tmp_path) == 2
