"""Log-probabilities of chosen tokens straight from hidden states: one pass over the logits forward, one backward.

log softmax(z)_y = z_y - log sum_v exp z_v, and its gradient in z is g (1[v = y] - softmax(z)_v). Written out with PyTorch's
own functions this takes a dozen passes over [N, V] numbers in float32; here the logits are kept once, in the precision of
the product, and worked through in pieces that stay in a processor's cache.
Axes: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

PIECE = 32
"""Tokens whose logits are held in float32 at a time: 6 MB at a vocabulary of 49,152."""


def chosen_logprobs(
    states_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> torch.Tensor:
    """log softmax(states weight^T / temperature) at ``targets``, [N] float32. Differentiable in states and weight."""
    return _Chosen.apply(states_NH, weight_VH, targets_N, temperature, False)[0]


def logprobs_and_entropies(
    states_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same log-probabilities bit for bit, and the entropies in nats (log Z - E[z], without gradient), both [N]."""
    return _Chosen.apply(states_NH, weight_VH, targets_N, temperature, True)


class _Chosen(torch.autograd.Function):
    """See ``chosen_logprobs``. Under autocast the products run in its type; everything else is float32."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, with_entropies: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits_NV = _product(states, weight)
        chosen_N, totals_N = _chosen_and_totals(logits_NV, targets, temperature)
        entropies_N = torch.zeros_like(totals_N)
        for piece in _pieces(len(totals_N)) if with_entropies else ():
            scaled = _scaled(logits_NV[piece], temperature)
            entropies_N[piece] = totals_N[piece] - ((scaled - totals_N[piece, None]).exp_() * scaled).sum(-1)
        ctx.save_for_backward(states, weight, targets, logits_NV, totals_N)
        ctx.mark_non_differentiable(entropies_N)
        ctx.temperature = temperature
        return chosen_N - totals_N, entropies_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, targets, logits_NV, totals_N = ctx.saved_tensors
        grad_N = grads[0] / ctx.temperature
        slopes_NV = torch.empty_like(logits_NV)
        for piece in _pieces(len(grad_N)):
            slope = (_scaled(logits_NV[piece], ctx.temperature) - totals_N[piece, None]).exp_().mul_(-grad_N[piece, None])
            slope[torch.arange(len(slope), device=slope.device), targets[piece]] += grad_N[piece]
            slopes_NV[piece] = slope
        to_states = (slopes_NV @ weight.to(slopes_NV.dtype)).to(states.dtype) if ctx.needs_input_grad[0] else None
        to_weight = (slopes_NV.T @ states.to(slopes_NV.dtype)).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return to_states, to_weight, None, None, None


def _product(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Logits [N, V] in autocast's type, or the states' own."""
    device = states.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    return states.to(kind) @ weight.to(kind).T


def _chosen_and_totals(logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """z_y and log sum_v exp z_v, both [N] in float32 or wider."""
    totals_N = torch.empty(len(logits_NV), dtype=torch.promote_types(logits_NV.dtype, torch.float32), device=logits_NV.device)
    chosen_N = torch.empty_like(totals_N)
    for piece in _pieces(len(totals_N)):
        scaled = _scaled(logits_NV[piece], temperature)
        totals_N[piece] = scaled.logsumexp(-1)
        chosen_N[piece] = scaled.gather(-1, targets_N[piece, None]).squeeze(-1)
    return chosen_N, totals_N


def _scaled(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """z = logits / temperature in float32 or wider."""
    wide = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return wide if temperature == 1.0 else wide / temperature


def _pieces(count: int) -> list[slice]:
    return [slice(start, start + PIECE) for start in range(0, count, PIECE)]
