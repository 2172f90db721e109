"""A round becomes a file of the pool that a real DVC versions and that is never changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipelines.data.schemas import PAIRS
from pipelines.data.tables import read_table
from pipelines.errors import ConfigurationError, DataError
from tasks import collecting
from tests.project import PARAMS, Project, environment_for, make
from tests.stages.inputs import write_inputs

COLLECT = """collect:
  prompts: 4
  answers: 3
  pairs: 4
  uncertain: 0.5
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with real, tiny models under artifacts/ and a judge of its own."""
    folder = tmp_path_factory.mktemp("collecting")
    project = make(folder / "project", environment_for(folder / "home"))
    write_inputs(project.folder / "artifacts")
    judge = "  judge:\n    kind: callable\n    callable: tests.tasks.tongue:vowels\n  min_margin: 0.0\n  precision: float32\n"
    project.write("params.yaml", PARAMS.replace("  judge:\n    kind: lexicon\n", judge) + COLLECT)
    return project


def test_a_round_is_a_new_file_that_dvc_versions(built: Project) -> None:
    root = built.folder
    assert collecting.next_round(root) == 1
    model, what = collecting.model_of(root, "ppo", root)
    facts = collecting.draw(root, 1, model, what)
    path = root / "data/preferences/round-001.parquet"
    assert facts["file"] == "data/preferences/round-001.parquet"
    assert len(read_table(path, PAIRS)) == facts["pairs"]
    note = YAML(typ="safe").load((root / f"{facts['file']}.dvc").read_text())
    assert note["meta"]["judge"] == "tests.tasks.tongue:vowels"
    assert note["meta"]["source"].startswith("answers of ppo (content ")
    status = built.git("status", "--porcelain", "--untracked-files=all").splitlines()
    assert "?? data/preferences/round-001.parquet.dvc" in status, "the note is for git"
    assert not [line for line in status if line.endswith(".parquet")], "the rows are for DVC"
    assert built.dvc("status", f"{facts['file']}.dvc").strip().endswith("up to date.")

    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="never changed; --round 2 is the next"):
        collecting.draw(root, 1, model, what)
    assert path.read_bytes() == before
    assert collecting.next_round(root) == 2


@pytest.mark.slow
def test_a_round_that_a_crash_left_unversioned_is_made_again(built: Project) -> None:
    """To the same bytes; what was left is put aside."""
    root, number = built.folder, collecting.next_round(built.folder)
    path = root / f"data/preferences/round-{number:03d}.parquet"
    model, what = collecting.model_of(root, "ppo", root)
    collecting.draw(root, number, model, what)
    before = path.read_bytes()
    Path(f"{path}.dvc").unlink()
    assert collecting.next_round(root) == number
    collecting.draw(root, number, model, what)
    assert path.read_bytes() == before
    assert (root / f".runs/collect/round-{number:03d}-left.parquet").read_bytes() == before


@pytest.mark.slow
def test_people_are_asked_and_read_back(built: Project) -> None:
    import json

    root = built.folder
    built.set("  uncertain: 0.5", "  uncertain: 0.0\n  labels: people")
    code, said = built.prefloop("collect", "--round", "7", "--policy", "ppo")
    assert (code, "pairs wait for people" in said) == (0, True), said
    queue = root / "data/queue/round-007.jsonl"
    code, said = built.prefloop("collect", "--round", "7")
    assert (code, "lines have no winner yet" in said) == (2, True), said
    rows = [json.loads(line) for line in queue.read_text().splitlines()]
    queue.write_text("".join(json.dumps({**row, "winner": "first"}) + "\n" for row in rows))
    code, said = built.prefloop("collect", "--round", "7")
    assert code == 0, said
    assert f"data/preferences/round-007.parquet: {len(rows)} pairs by people ({len(rows)} asked; 0 ties)" in said
    assert "note: preferences.source is judge" in said
    pairs = read_table(root / "data/preferences/round-007.parquet", PAIRS)
    assert pairs["chosen"].tolist() == [row["first"] for row in rows]


def test_a_model_that_is_not_there_is_named(built: Project, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--round 0: rounds count from 1"):
        collecting.draw(built.folder, 0, tmp_path, "ppo")
    folder, what = collecting.model_of(built.folder, "sft", tmp_path)
    assert (folder, what[:13]) == (built.folder / "artifacts/sft/model", "sft (content ")
    built.set("policies:", "policies:\n  other:\n    method: ppo")
    with pytest.raises(DataError, match="artifacts/policies/other/model: not there yet"):
        collecting.model_of(built.folder, "other", tmp_path)
