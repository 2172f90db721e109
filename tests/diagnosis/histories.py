"""Histories written by hand: a healthy run, and columns put over it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pipelines.diagnosis import Finding, Record, examine

NAN = float("nan")


def on_policy(steps: int = 40, **columns: Any) -> pd.DataFrame:
    """A healthy on-policy run; a column is a number, or a sequence of one value a step."""
    healthy: dict[str, Any] = {
        "objective/kl": np.linspace(0.0, 4.0, steps),
        "objective/kl_se": 0.2,
        "objective/scores": np.linspace(0.0, 1.0, steps),
        "objective/scores_sd": 0.5,
        "objective/scores_at_max": 0.05,
        "objective/length_correlation": 0.1,
        "objective/entropy": np.linspace(2.0, 1.5, steps),
        "tokens/response_length": 12.0,
        "tokens/eos_rate": 0.8,
        "tokens/repetition": 0.05,
        "policy/approxkl": 0.004,
        "policy/clipfrac": 0.1,
        "policy/ratio": 1.0,
        "policy/first_ratio": 1.0,
        "policy/surprise": 0.0,
        "policy/surprise_se": 0.01,
        "loss/value": 0.2,
        "val/explained_variance": 0.5,
        "val/return_variance": 1.0,
        "grad_norm": 1.0,
        "grad_norm_max": 1.0,
        "beta": 0.05,
        "skipped": 0.0,
    }
    return pd.DataFrame({"step": np.arange(1, steps + 1)} | healthy | columns)


def of(method: Any, frame: pd.DataFrame, settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Finding]:
    """What the detectors find, by their id."""
    return {one.detector: one for one in examine(Record(method, frame, settings or {"precision": "float32"}, **more))}


def ppo(frame: pd.DataFrame, **settings: Any) -> dict[str, Finding]:
    """The same for an on-policy run in float32."""
    return of("on_policy", frame, {"precision": "float32"} | settings)


def at(step: int, value: float, otherwise: float, steps: int = 40, until: int | None = None) -> list[float]:
    """``value`` from ``step`` to ``until`` (the end), ``otherwise`` before and after."""
    return [value if step <= number <= (until or steps) else otherwise for number in range(1, steps + 1)]
