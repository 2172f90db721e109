"""The detectors beside a stage that runs: they read its journal and say what is new. They report only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from pipelines.diagnosis.anyrun import begins_anew
from pipelines.diagnosis.finding import Record
from pipelines.diagnosis.table import examine, method_of

HEAD, TAIL = 10, 256
"""Rows that the rules look back to: the start, and the longest window twice."""


class Live:
    """One stage's journal as it grows. ``settings``: the stage's section of params.yaml."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.rows: dict[int, dict[str, float]] = {}
        self.told: set[tuple[str, str]] = set()
        self.before: Mapping[str, Any] = {}

    def see(self, lines: Sequence[Mapping[str, Any]]) -> list[str]:
        """What the detectors find with these further lines and have not said before, a sentence each."""
        for line in lines:
            if begins_anew(line, self.before):  # the next member of an ensemble
                self.rows.clear()
            if line["metrics"]:
                self.before = line
                self.rows.setdefault(int(line["step"]), {}).update(line["metrics"])
        if not self.rows:
            return []
        frame = pd.DataFrame(recent([{"step": step, **self.rows[step]} for step in sorted(self.rows)]))
        findings = examine(Record(method_of(frame.columns), frame, self.settings))
        fresh = [finding for finding in findings if (finding.detector, finding.level) not in self.told]
        self.told |= {(finding.detector, finding.level) for finding in fresh}
        return [f"{one.level} {one.detector}, {one.signal}: {one.evidence}; likely: {one.causes[0]}" for one in fresh]


def recent(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The first and the last rows of a history: all that the rules need, so that a look costs the same at any length."""
    return rows if len(rows) <= HEAD + TAIL else rows[:HEAD] + rows[-TAIL:]
