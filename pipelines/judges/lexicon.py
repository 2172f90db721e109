"""The VADER lexicon as a judge: the compound score of the answer alone, in [-1, 1], positive for a kind tone.

Paper: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text".
"""

from __future__ import annotations

from functools import cache
from typing import Any


def compound(prompts: list[str], answers: list[str]) -> list[float]:
    """Score each answer; its prompt plays no part, so that no prompt is worth more than another."""
    return [float(_analyser().polarity_scores(answer)["compound"]) for answer in answers]


@cache
def _analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
