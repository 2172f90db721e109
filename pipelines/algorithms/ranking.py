"""Losses of a reward model over several answers to one prompt, from one score an answer.

Papers: Bradley and Terry 1952; Plackett 1975 and Luce 1959; Ouyang et al. 2022, eq. 1 (InstructGPT). Axes: A answers of all
prompts of a batch, C comparisons of all of them (``winners`` and ``losers`` [C] say which two answers), P prompts
(``prompts`` [C] says whose comparison it is, 0..P-1, every one of them at least once).
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def comparisons_loss(
    scores_A: torch.Tensor, winners_C: torch.Tensor, losers_C: torch.Tensor, prompts_C: torch.Tensor
) -> torch.Tensor:
    """InstructGPT's loss (eq. 1): the mean over prompts of the mean of -log sigmoid(r_w - r_l) over the prompt's comparisons.

    Of K ranked answers there are C(K, 2); every answer was scored once.
    """
    return mean_over_prompts(-logsigmoid(scores_A[winners_C] - scores_A[losers_C]), prompts_C)


def plackett_luce_loss(
    scores_A: torch.Tensor, winners_C: torch.Tensor, losers_C: torch.Tensor, prompts_C: torch.Tensor
) -> torch.Tensor:
    """The mean over prompts of the mean over answers that beat others: -log of being chosen from itself and those it beats.

    P(i) = exp r_i / (exp r_i + sum_{j beaten by i} exp r_j). Where a prompt's comparisons are a whole ranking of K answers,
    this is the Plackett-Luce likelihood of the ranking over its K - 1 choices, and Bradley and Terry's for K = 2. Where a
    pair is missing or the labels run in a circle, they are choices from what was compared: a composite likelihood.
    """
    beaten_AA = torch.zeros(len(scores_A), len(scores_A), dtype=torch.bool, device=scores_A.device)
    beaten_AA[winners_C, losers_C] = True
    chosen_W, first_W = _firsts(winners_C)
    offered_WA = beaten_AA[chosen_W]
    offered_WA[torch.arange(len(chosen_W), device=scores_A.device), chosen_W] = True
    total_W = scores_A.expand(len(chosen_W), -1).masked_fill(~offered_WA, -torch.inf).logsumexp(1)
    return mean_over_prompts(total_W - scores_A[chosen_W], prompts_C[first_W])


def mean_over_prompts(values_C: torch.Tensor, prompts_C: torch.Tensor) -> torch.Tensor:
    """The mean over prompts of each one's own mean, so that a prompt with many comparisons weighs no more than another."""
    count = int(prompts_C.max()) + 1
    sums_P = torch.zeros(count, dtype=values_C.dtype, device=values_C.device).index_add(0, prompts_C, values_C)
    return (sums_P / torch.bincount(prompts_C, minlength=count)).mean()


def _firsts(values_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distinct values, and a place at which each of them stands."""
    distinct_W, where_C = torch.unique(values_C, return_inverse=True)
    place_W = torch.empty(len(distinct_W), dtype=torch.long, device=values_C.device)
    place_W[where_C] = torch.arange(len(values_C), device=values_C.device)
    return distinct_W, place_W
