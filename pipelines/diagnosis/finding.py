"""What a detector is given and what it answers. Axes: S rows of a history (steps)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Level = Literal["warning", "alarm"]
Method = Literal["on_policy", "offline", "reward", "sft"]
"""``offline``: straight from pairs (DPO and its relatives)."""
Action = Literal["", "skip", "raise_beta", "lower_rate", "roll_back", "finish", "stop"]
"""From the mildest on; "" = a person decides. ``finish`` ends the run with the last checkpoint before the peak was passed."""


@dataclass(frozen=True)
class Record:
    """A run as far as it is known; what is missing is empty, and detectors that need it are silent."""

    method: Method
    history: pd.DataFrame
    """As history.parquet has it: a row a step, ``step`` among its columns."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The entry of params.yaml (``policies.NAME``, ``reward``, ``sft``), defaults filled in."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """The stage's metrics.json, and what the evaluation and the labels add to it."""
    journal: Sequence[Mapping[str, Any]] = ()
    """Lines of timings.jsonl: ``step``, ``metrics``, ``timings``, ``note``."""

    def series(self, *names: str) -> tuple[NDArray[np.int64], list[Floats]] | None:
        """Steps [S] and columns [S] each, over the rows in which all of them are known; None where a column is missing."""
        if any(name not in self.history for name in names):
            return None
        columns = [self.history[name].to_numpy(dtype=np.float64) for name in names]
        known = np.all([~np.isnan(column) for column in columns], axis=0)
        if not known.any():
            return None
        return self.history["step"].to_numpy(dtype=np.int64)[known], [column[known] for column in columns]

    @property
    def last_step(self) -> int:
        """The newest step of the history; 0 where there is none."""
        return int(self.history["step"].iloc[-1]) if len(self.history) else 0


@dataclass(frozen=True)
class Hit:
    """A step at which a detector's rule is broken. ``cause``: what the evidence makes likeliest; it goes first."""

    step: int
    value: float
    limit: float
    level: Level = "alarm"
    evidence: str = ""
    cause: str = ""
    action: Action = ""


@dataclass(frozen=True)
class Finding:
    """What a detector says of a run: the first step of its worst level, why, and what to do. Alarms block a promotion."""

    detector: str
    signal: str
    level: Level
    value: float
    limit: float
    first_step: int
    last_step: int
    steps: int
    """How many steps of that level."""
    evidence: str
    causes: tuple[str, ...]
    """The likeliest first."""
    remedy: str
    action: Action
    """What an acting run would do at ``last_step``."""

    @property
    def blocks(self) -> bool:
        """Whether a policy with this finding should not be promoted."""
        return self.level == "alarm"
