"""KL estimators against exact sums, and the controller against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.algorithms.kl import adapted_beta, k1, k2, k3, log_ratio


def test_estimators_by_hand() -> None:
    """pi = 0.5, pi_ref = 0.25: k1 = ln 2 = 0.6931, k2 = 0.2402, k3 = 1/2 - 1 + ln 2 = 0.1931.

    pi = 0.25, pi_ref = 0.5: k1 = -0.6931, k2 = 0.2402, k3 = 2 - 1 - ln 2 = 0.3069.
    """
    ratios = log_ratio(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log())
    torch.testing.assert_close(k1(ratios), torch.tensor([math.log(2), -math.log(2)]))
    torch.testing.assert_close(k2(ratios), torch.full((2,), math.log(2) ** 2 / 2))
    torch.testing.assert_close(k3(ratios), torch.tensor([math.log(2) - 0.5, 1 - math.log(2)]))


def test_k1_and_k3_are_unbiased() -> None:
    """E_pi over all four outcomes, exactly: k1 and k3 give KL = sum p log(p / q); k2 does not."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    ratios = log_ratio(p.log(), q.log())
    kl = float((p * (p / q).log()).sum())
    assert float((p * k1(ratios)).sum()) == pytest.approx(kl, abs=1e-12)
    assert float((p * k3(ratios)).sum()) == pytest.approx(kl, abs=1e-12)
    assert abs(float((p * k2(ratios)).sum()) - kl) > 0.01
    assert (k3(ratios) >= 0).all()


def test_estimators_on_best_of_n() -> None:
    """Best of n has KL = log n - (n - 1) / n exactly, when no scores tie.

    With m equally likely answers ranked 1..m, best of n takes rank i with probability (i^n - (i-1)^n) / m^n; for m = 4000
    the sum is within 1e-3 of the limit. Here n = 4: log 4 - 3/4 = 0.6363.
    """
    m, n = 4000, 4
    ranks = torch.arange(0, m + 1, dtype=torch.float64) / m
    best = (ranks**n).diff()
    ratios = log_ratio(best.log(), torch.full((m,), 1 / m, dtype=torch.float64).log())
    assert float((best * k3(ratios)).sum()) == pytest.approx(math.log(n) - (n - 1) / n, abs=1e-3)


def test_log_ratios_are_clamped() -> None:
    assert log_ratio(torch.tensor([0.0, -90.0]), torch.tensor([-90.0, 0.0])).tolist() == [20.0, -20.0]


@pytest.mark.parametrize(("kl", "expected"), [(6.0, 0.1), (6.6, 0.101), (60.0, 0.102), (0.0, 0.098)])
def test_controller_by_hand(kl: float, expected: float) -> None:
    """beta 0.1, target 6, 100 samples of 1,000: at the target unchanged; 10 % above: 0.1 (1 + 0.1 * 0.1) = 0.101;
    far above: the error is clipped to 0.2: 0.102; far below: -0.2: 0.098."""
    assert adapted_beta(0.1, kl, 6.0, 100, 1000) == pytest.approx(expected)
