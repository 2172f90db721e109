"""The detectors beside a running stage: a sentence once, whatever the portions in which the journal comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.diagnosis import Record, examine
from pipelines.diagnosis.live import HEAD, TAIL, Live, recent
from pipelines.journal import Journal
from pipelines.runner import _followed, _seen
from tests.diagnosis.histories import at, on_policy


def lines(**columns: Any) -> list[dict[str, Any]]:
    """The journal of a run: a line a step, and a note without figures."""
    rows = on_policy(**columns).to_dict("records")
    return [{"step": 0, "metrics": {}, "timings": {}, "note": "hello"}] + [
        {"step": int(row["step"]), "metrics": {key: value for key, value in row.items() if key != "step"}} for row in rows
    ]


def test_what_is_new_is_said_once() -> None:
    """A clip fraction of 0.35 from step 10 on is an alarm at step 14, said with the portion that brings it."""
    journal, live = lines(**{"policy/clipfrac": at(10, 0.35, 0.1)}), Live({"precision": "float32"})
    said = [live.see(journal[start : start + 7]) for start in range(0, len(journal), 7)]
    assert [len(some) for some in said] == [0, 0, 1, 0, 0, 0]
    assert said[2][0].startswith("alarm D8, clip fraction: clipped share of tokens 0.35 at step 14, limit 0.3")
    assert said[2][0].endswith("likely: the learning rate is too high")


class Kept:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def log(self, lines: list[Any]) -> None:
        """Keep them."""
        self.lines += lines


def test_a_running_stage_says_it_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, while the same lines go to the tracker."""
    kept, journal = Kept(), Journal(tmp_path / "timings.jsonl")
    with _followed(tmp_path / "timings.jsonl", "policy@ppo", (), kept, Live({"precision": "float32"})):  # type: ignore[arg-type]
        for line in lines(**{"policy/clipfrac": at(10, 0.35, 0.1)}):
            journal.log(line["step"], 40, line["metrics"])
    assert capsys.readouterr().out.count("warning: alarm D8, clip fraction: clipped share of tokens 0.35 at step 14") == 1
    assert [line["step"] for line in kept.lines] == list(range(41))


def test_a_healthy_stage_and_one_without_settings_are_silent() -> None:
    assert Live({"precision": "float32"}).see(lines()) == []
    assert _seen(Live({}), lines(**{"policy/clipfrac": 0.9})) == []


def test_the_members_of_an_ensemble_are_not_mixed() -> None:
    """The gradients of one member are far above those of the member before: no spike, because each is a run of its own."""

    def member(norm: float, steps: int) -> list[dict[str, Any]]:
        figures = {"loss": 0.5, "grad_norm": norm, "margin": 0.1}
        return [{"step": step, "metrics": figures} for step in range(1, steps + 1)]

    first, second = member(1.0, 30), member(50.0, 30)
    live = Live({"precision": "float32"})
    assert live.see(first) + live.see(second[:10]) + live.see(second[10:]) == []
    spiked = [*first[:25], *second[25:]]
    assert Live({"precision": "float32"}).see(spiked)[0].startswith(("warning D2", "alarm D2"))


def test_a_look_never_costs_a_run() -> None:
    broken = [{"step": 1, "metrics": {"objective/kl": "no number"}}]
    (said,) = _seen(Live({"precision": "float32"}), broken)
    assert said.startswith("diagnosis: ValueError")


def test_the_first_and_last_rows_are_enough() -> None:
    """1,000 steps, a fault near the end: the same detectors speak, at the same step."""
    frame = on_policy(1000, **{"objective/entropy": at(950, 0.15, 2.0, 1000)})
    rows = recent(frame.to_dict("records"))
    assert len(rows) == HEAD + TAIL
    short, whole = (examine(Record("on_policy", one)) for one in (frame.__class__(rows), frame))
    assert [(one.detector, one.first_step) for one in short] == [(one.detector, one.first_step) for one in whole] == [("D9", 950)]
