"""Detectors for any training run: numbers that are not finite, spikes, stalls, steps that do not repeat themselves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.diagnosis.finding import Hit, Record
from pipelines.diagnosis.windows import above_sigmas, often, sigma_limit, where

CORE = ("loss", "grad_norm", "loss/policy", "loss/value", "objective/scores", "objective/kl")
INCIDENTS = 100
"""Steps within which a second non-finite batch is an alarm."""
SIGMAS, SPIKE_WINDOW, SPIKE_LEAST, TIMES = 6.0, 128, 20, 5.0
STALLED, STALL_WINDOW, STALL_LEAST = 3.0, 3, 5
ROLLED_BACK = "rolled back"


def non_finite(record: Record) -> list[Hit]:
    """D1. NaN or infinity in a row, or a step whose batch was left out because of one (the column ``skipped`` counts them)."""
    steps = [*_bad_rows(record), *_left_out(record)]
    hits = []
    for step in sorted(set(steps)):
        recent = [other for other in steps if 0 <= step - other < INCIDENTS]
        evidence = f"step {step}: a loss, gradient, score or log-probability was NaN or infinite; {len(recent)} within 100 steps"
        hits.append(Hit(step, float(len(recent)), 0.0, "warning" if len(recent) == 1 else "alarm", evidence))
    return hits


def _bad_rows(record: Record) -> list[int]:
    """A row that holds some of the core figures and lacks others, or holds an infinity."""
    names = [name for name in CORE if name in record.history]
    if not names or not len(record.history):
        return []
    values = record.history[names].to_numpy(dtype=np.float64)
    missing = np.isnan(values)
    bad = np.isinf(values).any(axis=1) | (missing.any(axis=1) & ~missing.all(axis=1))
    return [int(step) for step in record.history["step"].to_numpy()[bad]]


def _left_out(record: Record) -> list[int]:
    found = record.series("skipped")
    if found is None:
        return []
    steps, (skipped,) = found
    before, count, places = 0, 0.0, []
    for step, so_far in zip(steps.tolist(), skipped.tolist(), strict=True):
        if so_far > count:
            places += [place for place in range(before + 1, step)][-int(so_far - count) :] or [step]
        before, count = step, so_far
    return places


def spike(record: Record) -> list[Hit]:
    """D2. Gradient norm or loss above mean + 6 sd of the last 128 steps (OLMo-core), and above 5 times that mean.

    The norms of small runs are skewed: 6 sd alone are met in clean ones.
    """
    hits = []
    for name in ("grad_norm_max" if "grad_norm_max" in record.history else "grad_norm", "loss", "loss/value"):
        found = record.series(name)
        if found is None:
            continue
        steps, (values,) = found
        finite = np.isfinite(values)
        steps, values = steps[finite], values[finite]
        flags, limits = above_sigmas(values, SIGMAS, SPIKE_WINDOW, SPIKE_LEAST, TIMES)
        many = often(flags, 3, SPIKE_WINDOW)
        for i in where(flags):
            evidence = f"{name} {values[i]:.3g} at step {steps[i]}, limit {limits[i]:.3g}"
            facts = (int(steps[i]), float(values[i]), float(limits[i]))
            hits.append(Hit(*facts, "alarm", evidence, action="lower_rate") if many[i] else Hit(*facts, "warning", evidence))
    return sorted(hits, key=lambda hit: hit.step)


def gradient_limit(record: Record) -> float:
    """The gradient norm above which D2 would leave the next batch out; infinite while there are too few steps."""
    found = record.series("grad_norm_max")
    if found is None:
        return math.inf
    _, (values,) = found
    values = values[np.isfinite(values)]
    flags, _ = above_sigmas(values, SIGMAS, SPIKE_WINDOW, SPIKE_LEAST, TIMES)
    kept = values[~flags][-SPIKE_WINDOW:].tolist()
    return sigma_limit(kept, SIGMAS, TIMES) if len(kept) >= SPIKE_LEAST else math.inf


def stall(record: Record) -> list[Hit]:
    """D25. Three steps in a row that took more than three times the median of the steps before."""
    timed = [(int(line["step"]), _seconds(line.get("timings", {}))) for line in record.journal]
    timed = [(step, seconds) for step, seconds in timed if seconds > 0]
    flags: list[bool] = []
    limits: list[float] = []
    for place, (_, seconds) in enumerate(timed):
        quick = [other for (_, other), slow in zip(timed[:place], flags, strict=True) if not slow]
        limits.append(STALLED * statistics.median(quick) if len(quick) >= STALL_LEAST else math.inf)
        flags.append(seconds > limits[-1])
    slow = often(np.array(flags, dtype=bool), STALL_WINDOW, STALL_WINDOW)
    return [
        Hit(
            timed[i][0],
            timed[i][1],
            limits[i],
            "warning",
            f"step {timed[i][0]} took {timed[i][1]:.2f} s, limit {limits[i]:.2f} s",
        )
        for i in where(slow)
    ]


def _seconds(timings: Mapping[str, Any]) -> float:
    return float(sum(value for key, value in timings.items() if key == "step_seconds" or key.startswith("seconds/")))


def begins_anew(line: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a journal's line is the first step of another training than the last line with figures: what goes on from a
    checkpoint goes on behind it."""
    return bool(line.get("metrics") and before) and line["step"] == 1 and before["step"] > 1


def unrepeatable(record: Record) -> list[Hit]:
    """D26. A step that was computed twice (a run that went on from a checkpoint) with other numbers.

    A step is a pure function of the state before it, so any difference is hardware, a damaged state or nondeterminism. Steps
    that a roll back has changed on purpose are not compared, nor those of two trainings (the members of an ensemble).
    """
    first: dict[int, Mapping[str, float]] = {}
    hits = []
    before: Mapping[str, Any] = {}
    for line in record.journal:
        step, metrics = int(line["step"]), line.get("metrics", {})
        if ROLLED_BACK in line.get("note", "") or begins_anew(line, before):
            first.clear()
        before = line if metrics else before
        if metrics and step in first:
            other = first[step]
            both = sorted(set(metrics) & set(other))
            names = [name for name in both if metrics[name] != other[name] and metrics[name] == metrics[name]]
            if names:
                name = names[0]
                evidence = (
                    f"step {step}: {name} was {other[name]:.9g}, computed again {metrics[name]:.9g}; {len(names)} figures differ"
                )
                hits.append(Hit(step, abs(metrics[name] - other[name]), 0.0, "alarm", evidence))
        elif metrics:
            first[step] = metrics
    return hits
