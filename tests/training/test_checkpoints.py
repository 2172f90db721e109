"""Checkpoints: whole or absent, damaged ones passed over, nothing non-finite inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.training.checkpoints import NonFiniteState, newest, save


def state(value: float) -> dict:
    return {"weights": {"w": torch.full((3,), value)}, "history": [{"step": 1, "loss": value}]}


def test_saves_and_reads_back_every_kind(tmp_path: Path) -> None:
    save(tmp_path, 4, {"all": {"t": torch.arange(3), "b": torch.ones(2, dtype=torch.bfloat16), "f": 0.1, "n": None, "s": "x"}})
    found = newest(tmp_path)
    assert found is not None
    assert found[0] == 4
    loaded = found[1]["all"]
    assert torch.equal(loaded["t"], torch.arange(3))
    assert loaded["b"].dtype == torch.bfloat16
    assert (loaded["f"], loaded["n"], loaded["s"]) == (0.1, None, "x")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None


def test_keeps_the_newest_two(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save(tmp_path, step, state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]
    assert newest(tmp_path)[0] == 11  # type: ignore[index]


@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "no manifest", "bad manifest", "empty folder"])
def test_damaged_newest_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, state(1.0))
    folder = save(tmp_path, 2, state(2.0))
    file = folder / "weights.pt"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "delete":
        file.unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "bad manifest":
        (folder / "manifest.json").write_text('{"step": 2')
    else:
        for inside in folder.iterdir():
            inside.unlink()
    with pytest.warns(RuntimeWarning, match="step-00000002 .*going on from step-00000001"):
        found = newest(tmp_path)
    assert found is not None
    assert found[0] == 1
    assert torch.equal(found[1]["weights"]["w"], torch.full((3,), 1.0))


def test_all_damaged_starts_from_the_beginning(tmp_path: Path) -> None:
    (save(tmp_path, 1, state(1.0)) / "weights.pt").write_bytes(b"")
    told: list[str] = []
    assert newest(tmp_path, warn=told.append) is None
    assert "starting from the beginning" in told[0]


def test_leftover_temporary_folder_is_ignored_and_swept(tmp_path: Path) -> None:
    (tmp_path / ".tmp-00000005").mkdir(parents=True)
    assert newest(tmp_path) is None
    save(tmp_path, 6, state(1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


def test_same_step_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 1, state(1.0))
    save(tmp_path, 1, state(2.0))
    assert newest(tmp_path)[1]["history"][0]["loss"] == 2.0  # type: ignore[index]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_state_is_refused_and_nothing_written(tmp_path: Path, bad: float) -> None:
    with pytest.raises(NonFiniteState, match="weights.w"):
        save(tmp_path, 1, {"weights": {"w": torch.tensor([1.0, bad])}})
    with pytest.raises(NonFiniteState, match=r"history\[0\].loss"):
        save(tmp_path, 1, {"history": [{"loss": bad}]})
    assert newest(tmp_path) is None


def test_a_manifest_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, state(1.0))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = {"../outside.pt": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(RuntimeWarning):
        assert newest(tmp_path) is None
