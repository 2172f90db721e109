"""Log-probabilities and their gradient against PyTorch's own log_softmax, in float64."""

from __future__ import annotations

import pytest
import torch

from pipelines.algorithms.logprobs import PIECE, chosen_logprobs, logprobs_and_entropies

COUNT, HIDDEN, VOCABULARY = 2 * PIECE + 3, 5, 11


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random states [N, H], weight [V, H] and targets [N]; N is no multiple of a piece."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(COUNT, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return states, weight, torch.randint(VOCABULARY, (COUNT,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients(temperature: float) -> None:
    states, weight, targets = inputs()
    upstream = torch.linspace(-1, 2, COUNT, dtype=torch.float64)
    plain = torch.log_softmax(states @ weight.T / temperature, -1).gather(-1, targets[:, None]).squeeze(-1)
    expected = torch.autograd.grad((plain * upstream).sum(), (states, weight))
    found = chosen_logprobs(states, weight, targets, temperature)
    torch.testing.assert_close(found, plain, atol=1e-12, rtol=0)
    for ours, theirs in zip(torch.autograd.grad((found * upstream).sum(), (states, weight)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5 (sum 8): the second has log 1/4; entropy -(1/8 ln 1/8 + 1/4 ln 1/4 + 5/8 ln 5/8) = 0.9003."""
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log()[:, None]
    logprobs, entropies = logprobs_and_entropies(torch.ones(1, 1, dtype=torch.float64), weight, torch.tensor([1]), 1.0)
    assert logprobs.item() == pytest.approx(-1.3862943611)
    assert entropies.item() == pytest.approx(0.9002560748)


def test_entropies() -> None:
    states, weight, targets = inputs()
    logps = torch.log_softmax(states @ weight.T / 0.7, -1)
    _, found = logprobs_and_entropies(states, weight, targets, 0.7)
    torch.testing.assert_close(found, -(logps.exp() * logps).sum(-1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("bf16", [False, True])
def test_both_functions_agree_to_the_bit(bf16: bool) -> None:
    """What was recorded before the update is what the update computes: the first ratio is 1 exactly."""
    states, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        with_gradient = chosen_logprobs(states, weight, targets, 1.3)
        without, _ = logprobs_and_entropies(states, weight, targets, 1.3)
    assert with_gradient.dtype == torch.float32
    assert torch.equal(with_gradient, without)


def test_bf16_gradients_have_the_parameters_types_and_are_close() -> None:
    states, weight, targets = inputs(torch.float32)
    plain = torch.log_softmax(states @ weight.T, -1).gather(-1, targets[:, None]).sum()
    expected = torch.autograd.grad(plain, (states, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chosen_logprobs(states, weight, targets, 1.0).sum()
    for ours, theirs in zip(torch.autograd.grad(found, (states, weight)), expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()
