"""The sign test, length control and ratings against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.metrics import cluster_mean
from pipelines.evaluation.paired import ELO, bradley_terry, length_controlled, sign_test


def _logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_the_sign_test_counts_prompts() -> None:
    """Prompts a and b won, c balanced (one win, one loss), d won by ties and a win, e lost: 3 against 1.

    P(at least 3 of 4 heads) = 5/16, twice that is 0.625.
    """
    outcomes = [1, 1, 1, 0.5, 1, 0, 0.5, 1, 0, 0.5]
    found = sign_test(outcomes, list("aabbccddee"))
    assert (found.won, found.lost, found.p) == (3, 1, pytest.approx(0.625, abs=1e-12))
    ten = sign_test([1] * 10, range(10))
    assert ten.p == pytest.approx(2 / 2**10, abs=1e-15)
    assert sign_test([0.5, 0.5], "ab").p == 1.0


def test_equal_lengths_leave_the_win_rate_and_its_delta_method_interval() -> None:
    """With no gap the rate is the mean m, and the error of logit m is that of m divided by m (1 - m)."""
    rng = np.random.default_rng(3)
    outcomes = rng.choice([0.0, 0.5, 1.0], 60, p=[0.2, 0.2, 0.6])
    prompts = np.repeat(range(20), 3).tolist()
    mean, error = cluster_mean(outcomes, prompts)
    rate, low, high = length_controlled(outcomes, np.full(60, 7.0), prompts)
    assert rate == pytest.approx(mean, abs=1e-9)
    spread = 1.96 * error / (mean * (1 - mean))
    assert (low, high) == pytest.approx((_sigmoid(_logit(mean) - spread), _sigmoid(_logit(mean) + spread)), abs=1e-9)


def test_length_is_taken_out() -> None:
    """Two kinds of comparisons fit two parameters exactly.

    300 longer by 6 and won in 80 %, 100 shorter by 6 and won in 40 %: the standard deviation of the gaps is
    6 sqrt(1 - 0.5^2) = 5.19..., so both have the same |tanh|, and a = (logit 0.8 + logit 0.4) / 2. The raw rate is 0.7.
    """
    outcomes = [1.0] * 240 + [0.0] * 60 + [1.0] * 40 + [0.0] * 60
    gaps = [6.0] * 300 + [-6.0] * 100
    rate, low, high = length_controlled(outcomes, gaps, range(400))
    assert np.mean(outcomes) == pytest.approx(0.7)
    assert rate == pytest.approx(_sigmoid((_logit(0.8) + _logit(0.4)) / 2), abs=3e-5)
    assert low < rate < high
    assert high - low < 0.14


def test_where_length_decides_everything_nothing_is_left() -> None:
    """Every longer answer wins, as often as not ours: 0.5, although the fit has no finite weight of its own."""
    rate, low, high = length_controlled([1.0, 0.0] * 30, [4.0, -4.0] * 30, range(60))
    assert rate == pytest.approx(0.5, abs=1e-9)
    assert low < 0.5 < high
    assert length_controlled([1.0] * 5, [1, 2, 3, 4, 5], range(5)) == (1.0, 1.0, 1.0)


def test_two_ratings_are_the_log_odds_of_the_wins() -> None:
    """3 wins to 1 with half a win each way: log(3.5 / 1.5) nats."""
    wins = np.zeros((4, 2, 2))
    wins[:3, 1, 0], wins[3, 0, 1] = 1.0, 1.0
    ratings, intervals = bradley_terry(wins, resamples=50, seed=1)
    assert ratings.tolist() == [0.0, pytest.approx(ELO * math.log(3.5 / 1.5), abs=1e-9)]
    assert intervals[0].tolist() == [0.0, 0.0]
    assert intervals[1, 0] <= ratings[1] <= intervals[1, 1]


@given(st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=4), st.integers(4, 60))
def test_ratings_that_made_the_wins_are_found(truth: list[float], games: int) -> None:
    """Wins that are exactly the expected ones (less the half that is added) give back the ratings they came from."""
    nats = np.array([0.0, *truth])
    chance = 1 / (1 + np.exp(nats[None, :] - nats[:, None]))
    games_of = np.maximum(games, np.ceil(0.5 / np.minimum(chance, chance.T)) + 1)
    wins = np.where(np.eye(len(nats)) == 1, 0.0, games_of * chance - 0.5)
    ratings, _ = bradley_terry(wins[None], resamples=1, seed=1)
    assert ratings / ELO == pytest.approx(nats, abs=1e-7)


def test_a_model_that_never_loses_has_a_finite_rating() -> None:
    wins = np.zeros((50, 3, 3))
    wins[:, 2, :2], wins[:, 1, 0] = 1.0, 1.0
    ratings, intervals = bradley_terry(wins, resamples=200, seed=1)
    assert ratings[0] < ratings[1] < ratings[2] < 3000
    assert np.isfinite(intervals).all()


def test_400_points_are_ten_to_one() -> None:
    assert _sigmoid(400 / ELO) == pytest.approx(10 / 11, abs=1e-12)
