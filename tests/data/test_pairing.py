"""Pairs from scored answers: which are compared and who wins, worked by hand; draws checked against their probability."""

import math
from collections import Counter
from typing import Any

import pytest

from pipelines.config import Judge, Preferences
from pipelines.data.pairing import Scored, pair_up, wins

FOUR = [Scored(0, "fair", 0.5), Scored(1, "foul", -0.4), Scored(2, "fine", 0.52), Scored(3, "so", 0.0)]


def _settings(**some: Any) -> Preferences:
    return Preferences(**({"judge": Judge(), "bradley_terry_temperature": 1e-6, "min_margin": 0.05} | some))


def _numbers(answers: list[Scored], settings: Preferences, seed: int = 1) -> list[tuple[int, int]]:
    return [(chosen.number, rejected.number) for chosen, rejected in pair_up(answers, settings, seed).pairs]


def test_best_and_worst_make_one_pair() -> None:
    assert _numbers(FOUR, _settings(pairing="best_worst")) == [(2, 1)]


def test_all_pairs_but_those_within_the_margin() -> None:
    made = pair_up(FOUR, _settings(pairing="all", min_margin=0.05), 1)
    assert sorted((a.number, b.number) for a, b in made.pairs) == [(0, 1), (0, 3), (2, 1), (2, 3), (3, 1)]
    assert made.within_margin == 1  # 0.50 against 0.52


def test_a_random_pair_is_one_that_is_far_enough_apart() -> None:
    drawn = {_numbers(FOUR, _settings(pairing="random"), seed)[0] for seed in range(200)}
    assert drawn == {(0, 1), (0, 3), (2, 1), (2, 3), (3, 1)}


def test_equal_texts_count_once_and_equal_scores_make_no_pair() -> None:
    same = [Scored(0, "ay", 0.0), Scored(1, "ay", 0.0), Scored(2, "no", 0.0)]
    made = pair_up(same, _settings(pairing="all", min_margin=0.0), 1)
    assert (made.pairs, made.duplicates, made.within_margin) == ([], 1, 1)
    for pairing in ("random", "best_worst"):
        assert _numbers(same, _settings(pairing=pairing)) == []


def test_the_bradley_terry_probability() -> None:
    assert wins(0.0, 0.1) == 0.5
    assert wins(0.2, 0.1) == pytest.approx(1 / (1 + math.exp(-2)))
    assert wins(-0.2, 0.1) == pytest.approx(1 - wins(0.2, 0.1))
    assert wins(1e6, 1e-6) == 1.0
    assert wins(-1e6, 1e-6) == 0.0


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 0.7311), (0.25, 0.6155), (1.0, 0.2689)])
def test_labels_are_drawn_with_temperature_and_noise(noise: float, expected: float) -> None:
    """p = sigmoid(0.1 / 0.1) = 0.7311; with noise q: p (1 - q) + (1 - p) q. 4000 draws: four standard errors = 0.03."""
    two = [Scored(0, "a", 0.1), Scored(1, "b", 0.0)]
    settings = _settings(bradley_terry_temperature=0.1, label_noise=noise)
    count = Counter(_numbers(two, settings, seed)[0] for seed in range(4000))
    assert count[(0, 1)] / 4000 == pytest.approx(expected, abs=0.03)


def test_the_same_seed_draws_the_same_pairs() -> None:
    settings = _settings(pairing="all", bradley_terry_temperature=1.0)
    assert _numbers(FOUR, settings, 5) == _numbers(FOUR, settings, 5)
    assert len({tuple(_numbers(FOUR, settings, seed)) for seed in range(50)}) > 5


def test_a_judge_that_compares_gives_the_differences_itself() -> None:
    """Three of the six pairs were compared: two are far enough apart; the scores play no part. The best and the worst of them
    are 1 and 3, and 3 is better."""
    compared = {(0, 1): 0.8, (0, 2): 0.01, (1, 3): -2.0}
    made = pair_up(FOUR, _settings(pairing="all"), 1, compared)
    assert [(chosen.number, rejected.number) for chosen, rejected in made.pairs] == [(0, 1), (3, 1)]
    assert (made.duplicates, made.within_margin) == (0, 1)
    made = pair_up(FOUR, _settings(pairing="best_worst"), 1, compared)
    assert [(chosen.number, rejected.number) for chosen, rejected in made.pairs] == [(3, 1)]
