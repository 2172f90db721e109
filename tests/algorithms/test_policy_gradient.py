"""The losses against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.algorithms.policy_gradient import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    truncated_weights,
)


def same(tensor: torch.Tensor) -> torch.Tensor:
    """One worker: sums are what they are."""
    return tensor


def test_clipped_policy_loss_by_hand() -> None:
    """eps = 0.2. Old probability 0.5 throughout.

    new 0.75, A =  1: rho 1.5, clipped 1.2: -min( 1.5,  1.2) = -1.2  (clipped: no gain from going further)
    new 0.75, A = -1: rho 1.5, clipped 1.2: -min(-1.5, -1.2) =  1.5  (not clipped: a harmful move is undone)
    new 0.25, A =  1: rho 0.5, clipped 0.8: -min( 0.5,  0.8) = -0.5
    new 0.25, A = -1: rho 0.5, clipped 0.8: -min(-0.5, -0.8) =  0.8
    new 0.50, A =  2: rho 1:                                   -2.0
    """
    new = torch.tensor([0.75, 0.75, 0.25, 0.25, 0.5]).log()
    losses, ratios = clipped_policy_loss(new, torch.full((5,), 0.5).log(), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0]), 0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.0]))
    torch.testing.assert_close(ratios, torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0]))


def test_gradient_is_cut_where_the_clip_binds_and_nowhere_else() -> None:
    """d(-rho A)/d log pi = -rho A where the plain term is taken, 0 where the clipped one is.

    Rows as above: 0, 1.5, -0.5, 0, -2.
    """
    new = torch.tensor([0.75, 0.75, 0.25, 0.25, 0.5]).log().requires_grad_()
    losses, _ = clipped_policy_loss(new, torch.full((5,), 0.5).log(), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0]), 0.2)
    losses.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([0.0, 1.5, -0.5, 0.0, -2.0]))


def test_without_clipping_it_is_the_policy_gradient() -> None:
    """cliprange 0 = no clip: -rho A, so at rho = 1 the gradient is -A (REINFORCE)."""
    new = torch.tensor([-1.0, -2.0]).requires_grad_()
    losses, _ = clipped_policy_loss(new, new.detach(), torch.tensor([3.0, -4.0]), 0.0)
    losses.sum().backward()
    torch.testing.assert_close(new.grad, torch.tensor([-3.0, 4.0]))
    far, _ = clipped_policy_loss(torch.tensor([0.0]), torch.tensor([-math.log(5)]), torch.tensor([1.0]), 0.0)
    torch.testing.assert_close(far, torch.tensor([-5.0]))


def test_huge_log_ratios_stay_finite() -> None:
    """Log-ratios are clamped to +-20 before exp: e^20 = 4.85e8 and not inf."""
    losses, ratios = clipped_policy_loss(torch.tensor([0.0]), torch.tensor([-200.0]), torch.tensor([-1.0]), 0.2)
    assert ratios.item() == pytest.approx(math.exp(20), rel=1e-5)
    assert losses.item() == pytest.approx(math.exp(20), rel=1e-5)


def test_clipped_value_loss_by_hand() -> None:
    """eps = 0.2, old value 1.

    V 2.0, R 2.0: plain 0;    clipped to 1.2: 0.64. The larger, halved: 0.32, clipped
    V 1.1, R 2.0: plain 0.81; 1.1 stays: 0.81.                         0.405, not clipped
    V 0.0, R 2.0: plain 4;    clipped to 0.8: 1.44.                    2.0, not clipped
    V 0.0, R 0.0: plain 0;    clipped to 0.8: 0.64.                    0.32, clipped
    """
    values, returns = torch.tensor([2.0, 1.1, 0.0, 0.0]), torch.tensor([2.0, 2.0, 2.0, 0.0])
    losses, clipped = clipped_value_loss(values, torch.ones(4), returns, 0.2)
    torch.testing.assert_close(losses, torch.tensor([0.32, 0.405, 2.0, 0.32]))
    assert clipped.tolist() == [1.0, 0.0, 0.0, 1.0]
    plain, none = clipped_value_loss(values, torch.ones(4), returns, 0.0)
    torch.testing.assert_close(plain, torch.tensor([0.0, 0.405, 2.0, 0.0]))
    assert none.tolist() == [0.0] * 4


def test_truncated_weights_by_hand() -> None:
    """pi / mu: 0.6 / 0.4 = 1.5; 0.2 / 0.4 = 0.5; 0.3 / 0.3 = 1; 0.9 / 0.1 = 9, which ends at 2."""
    pi, mu = torch.tensor([0.6, 0.2, 0.3, 0.9]).log(), torch.tensor([0.4, 0.4, 0.3, 0.1]).log()
    torch.testing.assert_close(truncated_weights(pi, mu), torch.tensor([1.5, 0.5, 1.0, 2.0]))
    assert torch.equal(truncated_weights(pi, pi), torch.ones(4))


def test_weights_give_the_gradient_under_the_policy_that_learns() -> None:
    """One token, four values, drawn from mu; all outcomes summed exactly. No pi / mu is above 2, so E_mu[w g] = E_pi[g]:
    with A the outcome's reward, dJ/dz = pi (r - E_pi[r]) in the logits z. Without weights it is another gradient."""
    z = torch.tensor([0.3, -0.2, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    mu = torch.tensor([0.2, 0.3, 0.3, 0.2], dtype=torch.float64)
    r = torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    logprobs = torch.log_softmax(z, -1)
    pi = logprobs.exp().detach()
    assert (pi / mu).max() < 2
    losses, _ = clipped_policy_loss(logprobs, logprobs.detach(), r, 0.2)
    expected = -pi * (r - (pi * r).sum())
    (found,) = torch.autograd.grad((mu * truncated_weights(logprobs, mu.log()) * losses).sum(), z, retain_graph=True)
    torch.testing.assert_close(found, expected)
    (plain,) = torch.autograd.grad((mu * losses).sum(), z)
    assert (plain - expected).abs().max() > 0.05


def test_explained_variance_by_hand() -> None:
    """R = 1, 2, 3 (variance 2/3). V = R: 1. V = 2: 0. V = 3, 2, 1: errors -2, 0, 2 (variance 8/3): 1 - 4 = -3.

    The fourth token is padding and is not looked at. Constant returns: 0 by definition.
    """
    mask = torch.tensor([[1, 1, 1, 0]])
    returns = torch.tensor([[1.0, 2.0, 3.0, 99.0]])
    for values, expected in (([1.0, 2.0, 3.0, -5.0], 1.0), ([2.0, 2.0, 2.0, 7.0], 0.0), ([3.0, 2.0, 1.0, 0.0], -3.0)):
        assert explained_variance(torch.tensor([values]), returns, mask, same) == pytest.approx(expected)
    assert explained_variance(torch.zeros(1, 4), torch.ones(1, 4), mask, same) == 0.0
