"""The note about a slow precision: said above the limit only, never changing anything."""

from pathlib import Path

import pytest

from pipelines.context import Worker
from pipelines.journal import Journal, read_from
from pipelines.training import precision


def test_the_slower_precision_is_named_with_its_factor() -> None:
    assert precision.advice("bf16", {"bf16": 0.004, "float32": 0.002}) == (
        "this machine multiplies 2.0 times slower in bf16 than in float32; precision: float32 would be faster"
    )
    assert "precision: bf16 would be faster" in precision.advice("float32", {"bf16": 0.001, "float32": 0.002})
    assert precision.advice("bf16", {"bf16": 0.0025, "float32": 0.002}) == ""
    assert precision.advice("bf16", {"bf16": 0.001, "float32": 0.002}) == ""


@pytest.mark.parametrize("seconds", [{"bf16": 2.0, "float32": 1.0}, {"bf16": 1.0, "float32": 1.0}])
def test_the_note_goes_to_the_journal(tmp_path: Path, seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "multiplication_seconds", lambda name, device: seconds[name])
    precision.tell_if_slow("bf16", Worker(0, 1, "cpu", Journal(tmp_path / "journal")), 7)
    notes = [(line["step"], line["total"], line["note"]) for line in read_from(tmp_path / "journal", 0)[0]]
    assert len(notes) == (seconds["bf16"] > seconds["float32"])
    assert all(note[:2] == (0, 7) and "2.0 times slower" in note[2] for note in notes)


def test_a_product_takes_time() -> None:
    assert all(0 < precision.multiplication_seconds(name, "cpu") < 10 for name in ("float32", "bf16"))
