"""From scored answers to pairs: which two answers are compared, and which of them wins.

Paper: Bradley and Terry 1952: p(a beats b) = sigmoid((s_a - s_b) / temperature).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from pipelines.config import Preferences


@dataclass(frozen=True)
class Scored:
    """One answer to a prompt: its number, its text, the judge's score."""

    number: int
    text: str
    score: float


@dataclass(frozen=True)
class Pairs:
    """The pairs of one prompt as (chosen, rejected), and how many answers or comparisons fell away."""

    pairs: list[tuple[Scored, Scored]]
    duplicates: int
    within_margin: int


def pair_up(
    answers: list[Scored], settings: Preferences, seed: int, differences: Mapping[tuple[int, int], float] | None = None
) -> Pairs:
    """Pairs of one prompt's answers; every draw comes from ``seed``.

    Answers with the same text count once. ``random`` compares two answers, ``best_worst`` the two that the judge puts
    furthest apart, ``all`` every two; a comparison within ``min_margin`` makes no pair. A judge that has compared answers
    itself gives ``differences`` by the numbers of both; what it has not compared makes no pair either.
    """
    draw = random.Random(seed)
    candidates = comparable(answers)
    if differences is None:
        differences = {(one.number, other.number): one.score - other.score for one, other in candidates}
    judged = [(one, other, differences[one.number, other.number]) for one, other in candidates
              if (one.number, other.number) in differences]  # fmt: skip
    apart = [pair for pair in judged if abs(pair[2]) > settings.min_margin]
    if settings.pairing == "random":
        compared = [draw.choice(apart)] if apart else []
    elif settings.pairing == "best_worst":
        compared = [max(apart, key=lambda pair: abs(pair[2]))] if apart else []
    else:
        compared = apart
    pairs = [labelled(*pair, settings, draw) for pair in compared]
    return Pairs(pairs, len(answers) - len({answer.text for answer in answers}), len(judged) - len(apart))


def comparable(answers: list[Scored]) -> list[tuple[Scored, Scored]]:
    """Every two answers with different texts, in order."""
    distinct: dict[str, Scored] = {}
    for answer in answers:
        distinct.setdefault(answer.text, answer)
    return list(combinations(distinct.values(), 2))


def wins(difference: float, temperature: float) -> float:
    """The Bradley-Terry probability that the first of two answers wins, from the difference of their scores."""
    odds = difference / temperature
    return 1.0 / (1.0 + math.exp(-odds)) if odds >= 0 else math.exp(odds) / (1.0 + math.exp(odds))


def labelled(
    first: Scored, second: Scored, difference: float, settings: Preferences, draw: random.Random
) -> tuple[Scored, Scored]:
    """(chosen, rejected): a Bradley-Terry draw, turned round with probability ``label_noise``."""
    won = draw.random() < wins(difference, settings.bradley_terry_temperature)
    turned = draw.random() < settings.label_noise
    return (first, second) if won != turned else (second, first)
