"""Over-optimisation against closed forms and cases worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.optimisation import best_of, best_of_kl, curve, fit, summary


def _samples(rewards: dict[str, list[float]], golds: dict[str, list[float]], drift: float = 0.0) -> pd.DataFrame:
    rows = []
    for id_, own in rewards.items():
        for i, (reward, gold) in enumerate(zip(own, golds[id_], strict=True)):
            rows.append({"prompt_id": id_, "answer": "ABCDEFGH"[i], "reward": reward, "gold": gold, "logprob": drift - i})
            rows[-1]["logprob_sft"] = -float(i)
    return pd.DataFrame(rows)


def test_the_kl_of_best_of_n_is_that_of_its_density() -> None:
    """The best of n has density n u^(n-1) in quantiles: KL = integral of n u^(n-1) log(n u^(n-1)) du."""
    assert best_of_kl(1) == 0.0
    assert best_of_kl(2) == pytest.approx(math.log(2) - 0.5, abs=1e-15)
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in (2, 4, 16):
        density = n * u ** (n - 1)
        assert best_of_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-4)


def test_best_of_n_by_hand() -> None:
    """Rewards 1, 2, 3 with gold 0.9, 0.1, 0.5: best of 1 has their means; of the three pairs the best are 2, 3, 3."""
    found = best_of(_samples({"p": [3.0, 1.0, 2.0], "q": [0.0, 0.0, 0.0]}, {"p": [0.5, 0.9, 0.1], "q": [0.2, 0.2, 0.2]}))
    assert found["step"].tolist() == [1, 2, 3]
    assert found["reward"].tolist() == pytest.approx([1.0, (8 / 3) / 2, 1.5], abs=1e-6)
    assert found["gold"].tolist() == pytest.approx([(0.5 + 0.2) / 2, ((0.1 + 0.5 + 0.5) / 3 + 0.2) / 2, 0.35], abs=1e-6)
    assert found["distance"].tolist() == pytest.approx(np.sqrt(best_of_kl([1, 2, 3])).tolist(), abs=1e-6)
    assert found["answers"].tolist() == [2, 2, 2]


@given(st.permutations(range(6)), st.integers(0, 99))
def test_best_of_n_is_the_mean_over_all_subsets(order: list[int], seed: int) -> None:
    golds = np.random.default_rng(seed).normal(size=6).tolist()
    found = best_of(_samples({"p": [float(r) for r in order], "q": [0.0] * 6}, {"p": golds, "q": [0.0] * 6}))
    assert found["step"].tolist() == [1, 2, 3, 4, 6]
    for n, gold in zip(found["step"], found["gold"], strict=True):
        best = [golds[max(subset, key=lambda i: order[i])] for subset in itertools.combinations(range(6), n)]
        assert 2 * gold == pytest.approx(np.mean(best), abs=3e-6)


def test_the_fits_find_what_made_the_gains() -> None:
    """alpha 2, beta 0.5: the best-of-n form peaks at 2 / (2 * 0.5) = 2, the policy's at exp(2 / 0.5 - 1) = e^3."""
    d = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    one = fit("best_of", d, d * (2.0 - 0.5 * d))
    assert one is not None
    assert (one.alpha, one.beta, one.r2, one.peak) == pytest.approx((2.0, 0.5, 1.0, 2.0), abs=1e-9)
    above = d[1:]
    other = fit("policy", above, above * (2.0 - 0.5 * np.log(above)))
    assert other is not None
    assert (other.alpha, other.beta, other.r2, other.peak) == pytest.approx((2.0, 0.5, 1.0, math.exp(3)), abs=1e-7)
    assert other.gain(above).tolist() == pytest.approx((above * (2.0 - 0.5 * np.log(above))).tolist(), abs=1e-9)
    fine = np.linspace(0.1, 40, 100_000)
    assert fine[np.argmax(other.gain(fine))] == pytest.approx(math.exp(3), abs=1e-3)


def test_r2_by_hand() -> None:
    """Best-of-n's form at d = 1, 1, 2: gains 1, 1, 4 are met by alpha 0, beta -1; of 0, 2, 4 two are missed by 1: 1 - 2 / 8."""
    first, second = (fit("best_of", [1.0, 1.0, 2.0], gains) for gains in ([1.0, 1.0, 4.0], [0.0, 2.0, 4.0]))
    assert first is not None
    assert second is not None
    assert (first.alpha, first.beta, first.r2) == pytest.approx((0.0, -1.0, 1.0), abs=1e-9)
    assert first.peak is None, "it rises without end"
    assert second.r2 == pytest.approx(1 - 2 / 8, abs=1e-9)


def test_two_points_are_not_fitted() -> None:
    assert fit("policy", [0.0, 1.0, 2.0], [0.0, 1.0, 1.0]) is None


def test_a_policy_that_rises_and_falls() -> None:
    sft = _samples({"p": [0.0, 0.0], "q": [0.0, 0.0]}, {"p": [0.1, 0.1], "q": [0.1, 0.1]})
    tables = {0: sft}
    for step, (gold, drift) in {5: (0.4, 1.0), 10: (0.6, 4.0), 15: (0.2, 9.0)}.items():
        tables[step] = _samples({"p": [1.0, 1.0], "q": [1.0, 1.0]}, {"p": [gold, gold], "q": [gold, gold]}, drift)
    points = curve(tables)
    assert points["distance"].tolist() == [0.0, 1.0, 2.0, 3.0]
    found = summary("policy", points)
    assert (found["gold_peak_step"], found["gold_peak_kl"], found["gold_peak"], found["gold_last"]) == (10, 4.0, 0.6, 0.2)
    assert found["beta"] > 0
    assert 1.0 < found["fitted_peak_kl"] < 9.0
