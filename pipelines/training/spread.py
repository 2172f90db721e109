"""What the detectors need of a step beside its means (docs/diagnosis.md). Axes: B answers of this worker, T tokens."""

from __future__ import annotations

import torch

from pipelines.algorithms.advantages import masked_moments
from pipelines.algorithms.kl import k1, log_ratio
from pipelines.training.distributed import all_max, all_sum
from pipelines.training.rollout import Rollout


def spread(rollout: Rollout) -> dict[str, float]:
    """Over all workers: the KL's standard error (nats a sequence), how scores differ and follow length, repeated 3-grams,
    and the disagreement of an ensemble as a share of the scores' standard deviation.

    ``policy/surprise`` is the mean of -log pi(y_t) - H_t over tokens, in nats. Its expectation is 0, token by token, if and only
    if the tokens are drawn from the distribution that is scored; the terms are uncorrelated, so its standard error is exact.
    """
    kl_B = k1(log_ratio(rollout.logprobs, rollout.reference) * rollout.mask).sum(1)
    lengths_B = rollout.mask.sum(1).double()
    ones_B = torch.ones(len(rollout.answers))
    rows = all_sum(ones_B.sum().double()).item()
    surprise_BT = -rollout.logprobs - rollout.entropies
    surprise, surprise_variance = masked_moments(surprise_BT, rollout.mask, all_sum)
    tokens = all_sum(rollout.mask.sum().double()).item()
    _, kl_variance = masked_moments(kl_B, ones_B, all_sum)
    score_mean, score_variance = masked_moments(rollout.scores, ones_B, all_sum)
    length_mean, length_variance = masked_moments(lengths_B, ones_B, all_sum)
    highest = all_max(rollout.scores.max().double()).item()
    sums = torch.stack([
        ((rollout.scores.double() - score_mean) * (lengths_B - length_mean)).sum(),
        (rollout.scores.double() >= highest - 1e-9).double().sum(),
        *repeated_grams(rollout.answers),
        rollout.deviations.double().sum(),
    ])  # fmt: skip
    joint, at_max, repeated, grams, deviation = all_sum(sums).tolist()
    covariance = joint / max(rows - 1.0, 1.0)
    both = (score_variance * length_variance) ** 0.5
    found = {
        "objective/kl_se": (kl_variance / rows) ** 0.5,
        "objective/scores_sd": score_variance**0.5,
        "objective/scores_at_max": at_max / rows,
        "objective/length_correlation": covariance / both if both > 1e-12 else 0.0,
        "objective/length_slope": covariance / length_variance if length_variance > 1e-12 else 0.0,
        "policy/surprise": surprise,
        "policy/surprise_se": (surprise_variance / tokens) ** 0.5,
        "tokens/repetition": repeated / grams if grams else 0.0,
    }
    if len(rollout.deviations):
        found["reward/disagreement"] = deviation / rows / max(score_variance**0.5, 1e-12)
    return found


def judged(scores_B: torch.Tensor) -> dict[str, float]:
    """Mean of a held-out judge's scores over all workers' answers, and its standard error."""
    ones_B = torch.ones(len(scores_B))
    mean, variance = masked_moments(scores_B, ones_B, all_sum)
    return {"judge/held_out": mean, "judge/held_out_se": (variance / all_sum(ones_B.sum().double()).item()) ** 0.5}


def repeated_grams(answers: list[list[int]], n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """How many n-grams of tokens an answer has said before, summed over answers, and how many n-grams there are."""
    repeated = total = 0
    for answer in answers:
        grams = [tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)]
        repeated += len(grams) - len(set(grams))
        total += len(grams)
    return torch.tensor(float(repeated), dtype=torch.float64), torch.tensor(float(total), dtype=torch.float64)
