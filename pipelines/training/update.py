"""The update of one step: epochs over mini-batches of all workers' answers, gradients summed, one clipped Adam step each.

Losses are sums over tokens divided by the mini-batch's token count over all workers, so neither micro-batches nor workers
change the gradient. Axes: B answers of this worker, T tokens, N answer tokens of a micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pipelines.algorithms.advantages import masked_moments
from pipelines.algorithms.kl import k3, log_ratio
from pipelines.algorithms.policy_gradient import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    truncated_weights,
)
from pipelines.context import seed_for
from pipelines.models.generation import batches_of_like_length
from pipelines.models.policy import pack
from pipelines.training.distributed import all_max, all_sum, sum_gradients
from pipelines.training.learner import Learner
from pipelines.training.rollout import NonFinite, Rollout, Spike
from pipelines.training.sharding import clip_gradients, is_split

SUMS = ("tokens", "loss/policy", "loss/value", "policy/approxkl", "policy/clipfrac", "policy/ratio", "val/clipfrac")


@dataclass
class MiniBatch:
    """What one optimiser step reported, summed over all workers' tokens."""

    sums: dict[str, float]
    grad_norm: float
    ratios: tuple[float, float]
    """The largest and the smallest ratio of a token."""


def update(
    learner: Learner,
    rollout: Rollout,
    advantages_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    total_rows: int,
    seed: int,
    step: int,
    gradient_limit: float = math.inf,
) -> dict[str, float]:
    """All epochs of one step. ``total_rows`` answers lie on all workers. Returns the step's figures by their usual names.

    Raises Spike, before the weights are touched, where the first mini-batch's gradient norm is above ``gradient_limit``.
    """
    params = learner.params
    done: list[MiniBatch] = []
    epochs = 0
    for epoch in range(params.ppo_epochs):
        generator = torch.Generator().manual_seed(seed_for(seed, "minibatches", step, epoch))
        order = torch.randperm(total_rows, generator=generator).tolist()
        for start in range(0, total_rows, params.mini_batch_size):
            chosen = order[start : start + params.mini_batch_size]
            mine = [row - rollout.first_row for row in chosen if 0 <= row - rollout.first_row < len(rollout.answers)]
            limit = gradient_limit if not done else math.inf
            done.append(_one(learner, rollout, advantages_BT, returns_BT, sorted(mine), step, limit))
        epochs += 1
        recent = done[-(total_rows // params.mini_batch_size) :]
        if params.target_update_kl and _mean(recent, "policy/approxkl") > 1.5 * params.target_update_kl:
            break
    figures = {name: _mean(done, name) for name in SUMS[1:]}
    figures["policy/first_approxkl"] = _mean(done[:1], "policy/approxkl")
    figures["policy/first_clipfrac"] = _mean(done[:1], "policy/clipfrac")
    figures["policy/first_ratio"] = _mean(done[:1], "policy/ratio")
    figures["policy/epochs"] = float(epochs)
    figures["grad_norm"] = sum(one.grad_norm for one in done) / len(done)
    figures["grad_norm_max"] = max(one.grad_norm for one in done)
    figures["policy/ratio_max"] = max(one.ratios[0] for one in done)
    figures["policy/ratio_min"] = min(one.ratios[1] for one in done)
    figures["val/explained_variance"] = explained_variance(rollout.values, returns_BT, rollout.mask, all_sum)
    figures["val/return_variance"] = masked_moments(returns_BT, rollout.mask, all_sum)[1]
    return figures


def _one(
    learner: Learner,
    rollout: Rollout,
    advantages_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    rows: list[int],
    step: int,
    gradient_limit: float,
) -> MiniBatch:
    """One optimiser step on this worker's ``rows`` of a mini-batch; NonFinite and Spike (on all workers) leave weights alone."""
    params = learner.params
    warming = step <= params.critic_warmup_steps and learner.value_head is not None
    tokens = all_sum(rollout.mask[rows].sum().double()).item()
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    extremes = torch.full((2,), -math.inf, dtype=torch.float64)
    learner.optimizer.zero_grad(set_to_none=True)
    lengths = [len(rollout.prompts[row]) + len(rollout.answers[row]) for row in rows]
    micros = list(batches_of_like_length(lengths, params.micro_batch_size))
    # a layer is gathered from all workers at once: whoever has fewer micro-batches passes along
    idle = int(all_max(torch.tensor(len(micros)))) - len(micros) if learner.sharded else 0
    for micro in micros:
        loss, parts, ends = _loss(learner, rollout, advantages_BT, returns_BT, [rows[place] for place in micro], warming)
        (loss / tokens).backward()
        sums += parts
        extremes = torch.maximum(extremes, ends)
    for _ in range(idle):
        loss, _, _ = _loss(learner, rollout, advantages_BT, returns_BT, [0], warming)
        (0.0 * loss).backward()
    moved = learner.trained(critic_only=warming)
    sum_gradients([parameter for parameter in moved if not is_split(parameter)])
    totals = dict(zip(SUMS, all_sum(sums).tolist(), strict=True))
    norm = clip_gradients(moved, params.max_grad_norm)
    if not all(map(math.isfinite, (norm, *totals.values()))):
        learner.optimizer.zero_grad(set_to_none=True)
        raise NonFinite("loss or gradient of the update")
    if norm > gradient_limit:
        learner.optimizer.zero_grad(set_to_none=True)
        raise Spike(f"gradient norm {norm:.3g} above {gradient_limit:.3g}")
    learner.optimizer.step()
    largest, negated = all_max(extremes).tolist()
    return MiniBatch(totals, norm, (largest, -negated))


def _loss(
    learner: Learner,
    rollout: Rollout,
    advantages_BT: torch.Tensor,
    returns_BT: torch.Tensor,
    rows: list[int],
    warming: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of a micro-batch, summed over its tokens; the sums to report [len(SUMS)]; its largest and -smallest ratio [2]."""
    params, device = learner.params, learner.device
    packed = pack([rollout.prompts[row] for row in rows], [rollout.answers[row] for row in rows], device)
    valid = rollout.mask[rows].bool()
    old_N, sampled_N, old_values_N, advantages_N, returns_N = (
        part[rows][valid].to(device) for part in (rollout.logprobs, rollout.sampled, rollout.values, advantages_BT, returns_BT)
    )
    known, rollout.first_pass = rollout.first_pass, None  # of the weights as they were when the answers were sampled
    logprobs_N, values_N = known or learner.evaluate(packed, frozen_policy=warming)
    policy_N, ratio_N = clipped_policy_loss(logprobs_N, old_N, advantages_N, params.cliprange)
    policy_N = policy_N * truncated_weights(old_N, sampled_N)
    value_N, value_clipped_N = clipped_value_loss(values_N, old_values_N, returns_N, params.cliprange_value)
    loss = params.vf_coef * value_N.sum() if learner.value_head is not None else torch.zeros((), device=device)
    if not warming:
        loss = loss + policy_N.sum()
    with torch.no_grad():
        outside_N = ((ratio_N - 1.0).abs() > params.cliprange).float() * float(params.cliprange > 0)
        approx_N = k3(log_ratio(old_N, logprobs_N))
        reported = (torch.ones_like(ratio_N), policy_N, value_N, approx_N, outside_N, ratio_N, value_clipped_N)
        ends = torch.stack([ratio_N.max(), -ratio_N.min()]).double().cpu()
        return loss, torch.stack([part.double().sum() for part in reported]).cpu(), ends


def _mean(batches: list[MiniBatch], name: str) -> float:
    """A figure per token over some optimiser steps."""
    return sum(one.sums[name] for one in batches) / sum(one.sums["tokens"] for one in batches)
