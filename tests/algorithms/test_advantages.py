"""Advantages, baselines and whitening against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from pipelines.algorithms.advantages import (
    batch_baseline,
    gae,
    group_normalised,
    masked_moments,
    rloo,
    token_rewards,
    whiten,
)


def same(tensor: torch.Tensor) -> torch.Tensor:
    """One worker: sums are what they are."""
    return tensor


def test_gae_by_hand() -> None:
    """gamma 0.9, lambda 0.5. Rewards 1, 2, 3; values 0.5, 1, 1.5; V = 0 past the end.

    delta_3 = 3 - 1.5 = 1.5                   A_3 = 1.5
    delta_2 = 2 + 0.9 * 1.5 - 1 = 2.35        A_2 = 2.35 + 0.45 * 1.5 = 3.025
    delta_1 = 1 + 0.9 * 1 - 0.5 = 1.4         A_1 = 1.4 + 0.45 * 3.025 = 2.76125
    returns = A + V = 3.26125, 4.025, 3.
    The second row ends after two tokens (its rest is padding with nonsense in it):
    delta_2 = 2 - 1 = 1                       A_2 = 1
    delta_1 = 1 + 0.9 * 1 - 0.5 = 1.4         A_1 = 1.4 + 0.45 = 1.85;  returns 2.35, 2, 0.
    """
    rewards = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0]])
    values = torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 77.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    advantages, returns = gae(rewards, values, mask, 0.9, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[2.76125, 3.025, 1.5], [1.85, 1.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[3.26125, 4.025, 3.0], [2.35, 2.0, 0.0]]))


def test_gae_with_lambda_one_is_the_return_minus_the_value() -> None:
    """lambda 1, gamma 1: A_t = sum of the rewards from t on - V_t. Rewards 1, 2, 3: 6, 5, 3."""
    values = torch.tensor([[10.0, 20.0, 30.0]])
    advantages, returns = gae(torch.tensor([[1.0, 2.0, 3.0]]), values, torch.ones(1, 3, dtype=torch.long), 1.0, 1.0)
    torch.testing.assert_close(advantages, torch.tensor([[-4.0, -15.0, -27.0]]))
    torch.testing.assert_close(returns, torch.tensor([[6.0, 5.0, 3.0]]))


def test_the_score_sits_on_the_last_token_and_never_on_padding() -> None:
    """beta 0.1. Row 1 has three tokens, row 2 one; k1 = 1, 2, 3 and 4 (5 and 6 are padding).

    Row 1: -0.1, -0.2, 10 - 0.3 = 9.7.  Row 2: 20 - 0.4 = 19.6, 0, 0.
    """
    k1 = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), k1, mask, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, -0.2, 9.7], [19.6, 0.0, 0.0]]))


def test_rloo_by_hand() -> None:
    """Two prompts, three answers each. 1, 2, 6: others' means 4, 3.5, 1.5: -3, -1.5, 4.5. 0, 0, 3: -1.5, -1.5, 3."""
    found = rloo(torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0]), 3)
    torch.testing.assert_close(found, torch.tensor([-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]))


def test_group_normalised_by_hand() -> None:
    """1, 2, 3: mean 2, standard deviation 1 (n - 1): -1, 0, 1 over 1.0001. Equal totals: 0, no division by 0."""
    found = group_normalised(torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0]), 3)
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0]) / 1.0001)


def test_batch_baseline_is_the_mean_of_all_others_also_over_workers() -> None:
    """1, 2, 6, 3: sum 12; 1 - 11/3, 2 - 10/3, 6 - 6/3, 3 - 9/3. Two workers with two each see the same sums."""
    expected = torch.tensor([1 - 11 / 3, 2 - 10 / 3, 4.0, 0.0])
    torch.testing.assert_close(batch_baseline(torch.tensor([1.0, 2.0, 6.0, 3.0]), same), expected)
    whole = torch.tensor([12.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(batch_baseline(torch.tensor([1.0, 2.0]), lambda sums: whole), expected[:2])


def test_whitening_by_hand() -> None:
    """1, 3 and (row 2) 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 3. Whitened: -3, -1, 1, 3 over its root; padding 0."""
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, -100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    assert masked_moments(values, mask, same) == pytest.approx((4.0, 20.0 / 3.0))
    expected = torch.tensor([[-3.0, -1.0, 0.0], [1.0, 3.0, 0.0]]) / (20.0 / 3.0) ** 0.5
    torch.testing.assert_close(whiten(values, mask, same), expected)


def test_whitening_of_equal_values_is_zero() -> None:
    assert whiten(torch.full((2, 3), 4.0), torch.ones(2, 3, dtype=torch.long), same).abs().max() == 0.0
