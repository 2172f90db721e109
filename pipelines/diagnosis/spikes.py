"""Why did the reward jump? Eight questions in a fixed order; the first one with a bad answer is the likeliest cause.

Each is a pure function of what is known; what is not known is said to be unknown, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipelines.diagnosis.finding import Floats, Record
from pipelines.diagnosis.windows import above_sigmas

BEFORE, LEAST, SIGMAS = 20, 8, 6.0
TOP, LEAST_TOP = 0.01, 5
SPAN = 3
SHARED, LIFT, LOST = 0.5, 0.3, 0.5
REPEATED, UNENDED = 0.2, 0.2
Rescore = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class Step:
    """One of the eight questions with its answer. ``suspicious`` None = unknown."""

    question: str
    answer: str
    suspicious: bool | None


@dataclass(frozen=True)
class Analysis:
    """``cause``: the first suspicious answer; "" where none is."""

    step: int
    steps: tuple[Step, ...]
    cause: str


def first_spike(record: Record) -> int | None:
    """The first step whose mean score stands above the 20 steps before it by 6 standard deviations of their differences."""
    found = record.series("objective/scores")
    if found is None or len(found[0]) <= LEAST:
        return None
    steps, (scores,) = found
    flags, _ = above_sigmas(np.abs(np.diff(scores)), SIGMAS, BEFORE, LEAST)
    rises = np.flatnonzero(flags & (np.diff(scores) > 0.0))
    return int(steps[rises[0] + 1]) if len(rises) else None


def analyse(
    record: Record, step: int, changed: Sequence[str] | None, samples: pd.DataFrame | None = None, rescore: Rescore | None = None
) -> Analysis:
    """The eight steps at ``step``.

    ``changed``: what DVC says has other hashes than in the recorded run (None = no recorded run). ``samples``: answers with
    ``prompt``, ``text``, ``reward`` and ``ended`` (an evaluation's table). ``rescore``: the reward model on prompts and texts.
    """
    top = _top(samples)
    span = _shared_span(top, samples)
    steps = (
        _hashes(changed),
        _judge(record, step),
        _length(record, step),
        _ensemble(record, step),
        _texts(samples, top, span),
        _counterfactual(top, span, rescore),
        _drift(record, step),
        _value(record, step),
    )
    cause = next((f"{one.question}: {one.answer}" for one in steps if one.suspicious), "")
    return Analysis(step, steps, cause)


def _hashes(changed: Sequence[str] | None) -> Step:
    question = "1. did data, parameters or the reward model change"
    if changed is None:
        return Step(question, "unknown: no recorded run to compare with (prefloop commit records one)", None)
    return Step(question, ", ".join(changed) if changed else "no: every hash as recorded", bool(changed))


def _judge(record: Record, step: int) -> Step:
    question = "2. does a held-out judge follow"
    found = _around(record, "judge/held_out", step)
    errors = _around(record, "judge/held_out_se", step)
    if found is None or errors is None:
        return Step(question, "unknown: no held-out judge (diagnosis.held_out names one)", None)
    before, after = found
    error = 2.0 * float(np.hypot(errors[0].mean() / np.sqrt(len(errors[0])), errors[1].mean() / np.sqrt(len(errors[1]))))
    change = float(after.mean() - before.mean())
    way = "up" if change > error else "down" if change < -error else "flat"
    return Step(question, f"{way}: {before.mean():.3g} -> {after.mean():.3g} (2 SE {error:.2g})", way != "up")


def _length(record: Record, step: int) -> Step:
    question = "3. is length paid for"
    slope, length = _around(record, "objective/length_correlation", step), _around(record, "tokens/response_length", step)
    if slope is None or length is None:
        return Step(question, "unknown: not in the history", None)
    grown = float(length[1].mean() / length[0].mean())
    paid = float(slope[1].mean())
    return Step(question, f"score and length correlate {paid:.2f}, answers {grown:.2f} x as long", paid > 0.5 and grown > 1.2)


def _ensemble(record: Record, step: int) -> Step:
    question = "4. do several reward models disagree"
    found = _around(record, "reward/disagreement", step)
    if found is None:
        return Step(question, "unknown: one reward model (reward.members)", None)
    grown = float(found[1].mean() / max(found[0].mean(), 1e-12))
    return Step(question, f"spread over the scores' spread {grown:.2f} x that before", grown > 1.5)


def _texts(samples: pd.DataFrame | None, top: pd.DataFrame | None, span: str) -> Step:
    question = "5. what do the best-scored answers share"
    if samples is None or top is None:
        return Step(question, "unknown: no evaluated answers", None)
    holding = float(np.mean([span in _padded(text) for text in top["text"]])) if span else 0.0
    repeated = float(np.mean([_repeats(text) for text in top["text"]])) - float(
        np.mean([_repeats(text) for text in samples["text"]])
    )
    unended = float((~top["ended"]).mean() - (~samples["ended"]).mean())
    said = f"{len(top)} answers: {holding:.0%} hold {span.strip()!r}" if span else f"{len(top)} answers: no words in common"
    answer = f"{said}; repeated 3-grams {repeated:+.2f}, without EOS {unended:+.2f} against all answers"
    return Step(question, answer, holding > SHARED or repeated > REPEATED or unended > UNENDED)


def _counterfactual(top: pd.DataFrame | None, span: str, rescore: Rescore | None) -> Step:
    question = "6. and without what they share"
    if top is None or not span or rescore is None:
        return Step(
            question, "unknown: " + ("nothing is shared" if top is not None and not span else "nothing to score again"), None
        )
    holding = top[[span in _padded(text) for text in top["text"]]]
    prompts, whole = holding["prompt"].tolist(), holding["text"].tolist()
    without = [_padded(text).replace(span, " ").strip() for text in whole]
    before, after = (float(np.mean(rescore(prompts, texts))) for texts in (whole, without))
    return Step(question, f"scored again without it: {before:.3g} -> {after:.3g}", before > 0.0 and after < LOST * before)


def _drift(record: Record, step: int) -> Step:
    question = "7. KL per token and entropy"
    kl, length, entropy = (_around(record, n, step) for n in ("objective/kl", "tokens/response_length", "objective/entropy"))
    if kl is None or length is None or entropy is None:
        return Step(question, "unknown: not in the history", None)
    per_token = [float(kl[i].mean() / length[i].mean()) for i in (0, 1)]
    share = float(entropy[1].mean() / max(entropy[0].mean(), 1e-12))
    jumped = per_token[1] > 2.0 * max(per_token[0], 0.01)
    return Step(
        question, f"KL {per_token[0]:.3g} -> {per_token[1]:.3g} nats a token, entropy {share:.2f} x", jumped or share < 0.5
    )


def _value(record: Record, step: int) -> Step:
    question = "8. explained variance of the value"
    found = _around(record, "val/explained_variance", step)
    if found is None or not np.any(found[1]):
        return Step(question, "unknown: no critic", None)
    return Step(question, f"{found[0].mean():.2f} -> {found[1].mean():.2f}", bool(found[1].mean() < min(0.0, found[0].mean())))


def _around(record: Record, name: str, step: int, width: int = 5) -> tuple[Floats, Floats] | None:
    """The column's values before ``step`` (up to 20) and from it on (up to 5)."""
    found = record.series(name)
    if found is None:
        return None
    steps, (values,) = found
    before, after = values[steps < step][-BEFORE:], values[steps >= step][:width]
    return (before, after) if len(before) and len(after) else None


def _top(samples: pd.DataFrame | None) -> pd.DataFrame | None:
    """The best-scored 1 % of the answers, five at the least."""
    if samples is None:
        return None
    scored = samples[samples["reward"].notna()]
    if len(scored) < 4 * LEAST_TOP:
        return None
    return scored.sort_values("reward", ascending=False, kind="stable").head(max(LEAST_TOP, round(TOP * len(scored))))


def _shared_span(top: pd.DataFrame | None, samples: pd.DataFrame | None) -> str:
    """The words, up to three in a row, that most of the best-scored answers hold and far fewer of all; "" if there are none."""
    if top is None or samples is None:
        return ""
    every = [_padded(text) for text in samples["text"]]
    for size in range(SPAN, 0, -1):
        counts: Counter[str] = Counter()
        for words in (text.split() for text in top["text"]):
            counts.update({f" {' '.join(words[i : i + size])} " for i in range(len(words) - size + 1)})
        for span, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if count <= SHARED * len(top):
                break
            if count / len(top) - np.mean([span in text for text in every]) > LIFT:
                return span
    return ""


def _padded(text: str) -> str:
    return f" {' '.join(text.split())} "


def _repeats(text: str) -> float:
    words = text.split()
    grams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _mean_repeats(samples: pd.DataFrame) -> float:
    return float(np.mean([_repeats(text) for text in samples["text"]]))
