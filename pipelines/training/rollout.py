"""One step's experience: answers, their scores, and what the losses need of them.

Axes: B answers of this worker, T tokens of the longest (padded on the right), G samples of a prompt (neighbours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pipelines.algorithms import advantages as adv
from pipelines.algorithms.kl import k1, k2, k3, log_ratio
from pipelines.algorithms.policy_gradient import TRUNCATION
from pipelines.config import Ppo
from pipelines.context import seed_for
from pipelines.data.tokens import right_pad
from pipelines.journal import metric_name
from pipelines.models.generation import batches_of_like_length
from pipelines.models.policy import pack
from pipelines.training.distributed import all_sum
from pipelines.training.engines import Engine
from pipelines.training.learner import Learner
from pipelines.training.rewards import OpenTerm, Opinions, Row, WorstOff


class NonFinite(Exception):
    """A number of a batch is NaN or infinite; the message says which."""


class Spike(Exception):
    """The gradient norm of a batch is far above those before it; the message gives both."""


@dataclass
class Rollout:
    """The answers of one step (this worker's) and everything that is known of them before the update."""

    first_row: int
    """The number of this worker's first answer among all workers' answers."""
    prompts: list[Row]
    answers: list[Row]
    ended: list[bool]
    mask: torch.Tensor
    """[B, T] 1 on the answer's tokens."""
    logprobs: torch.Tensor
    """[B, T] of the policy that sampled."""
    sampled: torch.Tensor
    """[B, T] the same as the engine had them when it sampled."""
    reference: torch.Tensor
    """[B, T] log-probabilities of the reference."""
    values: torch.Tensor
    """[B, T]"""
    entropies: torch.Tensor
    """[B, T] nats."""
    scores: torch.Tensor
    """[B] the weighted sum of the rewards' terms."""
    terms: dict[str, torch.Tensor]
    """[B] each term as it came."""
    deviations: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """[B] standard deviation over the members of an ensemble of reward models; empty where there is none."""
    groups: dict[str, torch.Tensor] = field(default_factory=dict)
    """[B] the scores of every group's own reward model; empty where there is none."""
    first_pass: tuple[torch.Tensor, torch.Tensor] | None = None
    """[N] log-probabilities and values with their graphs, where the update begins with this very pass."""


def roll_out(learner: Learner, prompts: list[Row], first_row: int, engine: Engine, seed: int, step: int) -> Rollout:
    """Sample an answer to every row of ``prompts``, then read log-probabilities and values in the update's own passes.

    Row i draws from a generator keyed by seed, step and its number over all workers.
    """
    params = learner.params
    seeds = [seed_for(seed, "rollout", step, first_row + row) for row in range(len(prompts))]
    sampled = engine(learner.policy, prompts, seeds)
    _, mask = right_pad(sampled.tokens, 0)
    parts: dict[str, list[torch.Tensor]] = {
        name: [torch.empty(0)] * len(prompts) for name in ("logprobs", "values", "entropies", "reference")
    }
    lengths = [len(p) + len(a) for p, a in zip(prompts, sampled.tokens, strict=True)]
    once, first_pass = begins_the_update(learner, len(prompts), step), None
    for rows in batches_of_like_length(lengths, params.micro_batch_size):
        packed = pack([prompts[row] for row in rows], [sampled.tokens[row] for row in rows], learner.device)
        assessed = learner.assess(packed, differentiable=once)
        first_pass = assessed[:2] if once else None
        for into, whole in zip(parts.values(), assessed, strict=True):
            for row, part in zip(rows, whole.detach().cpu().split(packed.lengths), strict=True):
                into[row] = part
    padded = {name: _padded(rows, mask) for name, rows in parts.items()}
    # what the policy itself sampled differs from the pass over whole answers by rounding alone, which is not made up for
    own = params.engine == "hf"
    padded["sampled"] = padded["logprobs"] if own else _padded([torch.tensor(row) for row in sampled.logprobs], mask)
    scores = torch.zeros(len(prompts))
    return Rollout(
        first_row,
        prompts,
        sampled.tokens,
        sampled.ended,
        mask,
        **padded,
        scores=scores,
        terms={},
        groups={},
        first_pass=first_pass,
    )


def begins_the_update(learner: Learner, rows: int, step: int) -> bool:
    """Whether the pass over a worker's ``rows`` answers is also the update's first: they are one micro-batch of one mini-batch.

    Then it is made once, a tenth of a step less. While the critic warms up the policy has no gradient, and weights that are
    split over the workers are whole during the rollout alone.
    """
    params = learner.params
    one = params.mini_batch_size == params.batch_size * params.samples_per_prompt and rows <= params.micro_batch_size
    return one and step > params.critic_warmup_steps and not learner.sharded


def score(rollout: Rollout, rewards: Sequence[OpenTerm]) -> None:
    """Fill in the scores; raise NonFinite on every worker if any number of the step is not finite on any of them."""
    for term in rewards:
        found = term.score(rollout.prompts, rollout.answers, rollout.ended)
        rollout.terms[term.name] = torch.tensor(found)
        if isinstance(found, Opinions):
            rollout.deviations = torch.tensor(found.deviations)
        if isinstance(found, WorstOff):
            rollout.groups = {name: torch.tensor(values) for name, values in found.groups.items()}
        rollout.scores = rollout.scores + term.weight * rollout.terms[term.name]
    for name in ("scores", "logprobs", "sampled", "reference", "values"):
        bad = (~torch.isfinite(getattr(rollout, name))).sum().double()
        if all_sum(bad).item() > 0:
            raise NonFinite(f"{name} of the rollout")


@dataclass
class Normaliser:
    """Running mean and spread of scores over all steps and workers (Chan et al. 1979, eq. 2.1: moments merged)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, scores_B: torch.Tensor) -> None:
        """Merge a batch of all workers."""
        values = scores_B.double()
        count, total = all_sum(torch.tensor([float(len(values)), values.sum().item()], dtype=torch.float64)).tolist()
        mean = total / count
        squares = all_sum((values - mean).square().sum()).item()
        merged, shift = self.count + count, mean - self.mean
        self.squares += squares + shift**2 * self.count * count / merged
        self.mean += shift * count / merged
        self.count = merged

    def applied(self, scores_B: torch.Tensor) -> torch.Tensor:
        """(score - mean) / standard deviation; only centred where there is no spread."""
        spread = (self.squares / max(self.count, 1.0)) ** 0.5
        return (scores_B - self.mean) / (spread if spread > 1e-6 else 1.0)


def final_scores(rollout: Rollout, params: Ppo, normaliser: Normaliser) -> torch.Tensor:
    """The scores [B] that are rewarded: normalised, clipped, less the penalties for length and for not ending by itself."""
    scores_B = rollout.scores
    if params.normalise_scores == "running" or (params.normalise_scores == "reference" and normaliser.count == 0):
        normaliser.add(scores_B)
    if params.normalise_scores != "none":
        scores_B = normaliser.applied(scores_B)
    if params.score_clip:
        scores_B = scores_B.clamp(-params.score_clip, params.score_clip)
    scores_B = scores_B - params.length_penalty * rollout.mask.sum(1)
    return scores_B - params.missing_eos_penalty * (~torch.tensor(rollout.ended)).float()


def advantages_of(rollout: Rollout, scores_B: torch.Tensor, params: Ppo, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns [B, T] under the estimator asked for; whitened over all workers' tokens if asked."""
    ratios_BT = k1(log_ratio(rollout.logprobs, rollout.reference)) * rollout.mask
    rewards_BT = adv.token_rewards(scores_B, ratios_BT, rollout.mask, beta)
    if params.estimator == "gae":
        advantages_BT, returns_BT = adv.gae(rewards_BT, rollout.values, rollout.mask, params.gamma, params.lam)
    else:
        totals_B = rewards_BT.sum(1)
        if params.estimator == "rloo":
            per_answer_B = adv.rloo(totals_B, params.samples_per_prompt)
        elif params.estimator == "group":
            per_answer_B = adv.group_normalised(totals_B, params.samples_per_prompt)
        else:
            per_answer_B = adv.batch_baseline(totals_B, all_sum)
        advantages_BT = per_answer_B[:, None] * rollout.mask
        returns_BT = torch.zeros_like(advantages_BT)
    if params.whiten_advantages:
        advantages_BT = adv.whiten(advantages_BT, rollout.mask, all_sum)
    return advantages_BT, returns_BT


def objectives(rollout: Rollout, scores_B: torch.Tensor, beta: float) -> dict[str, float]:
    """The step's figures over all workers: KL in nats per sequence, entropy in nats per token, length in tokens."""
    ratios_BT = log_ratio(rollout.logprobs, rollout.reference) * rollout.mask
    tokens = float(rollout.mask.sum())
    ended = torch.tensor(rollout.ended).double()
    sums = torch.stack(
        [
            torch.tensor(float(len(rollout.answers)), dtype=torch.float64),
            torch.tensor(tokens, dtype=torch.float64),
            rollout.scores.double().sum(),
            scores_B.double().sum(),
            k1(ratios_BT).double().sum(),
            k2(ratios_BT).double().sum(),
            (k3(ratios_BT) * rollout.mask).double().sum(),
            (rollout.entropies * rollout.mask).double().sum(),
            ended.sum(),
            *[values.double().sum() for values in [*rollout.terms.values(), *rollout.groups.values()]],
        ]
    )
    rows, tokens, raw, final, kl, kl2, kl3, entropy, eos, *parts = all_sum(sums).tolist()
    terms, groups = parts[: len(rollout.terms)], parts[len(rollout.terms) :]
    single = {f"reward/{name}": total / rows for name, total in zip(rollout.terms, terms, strict=True)}
    whose = {f"group/{metric_name(name)}": total / rows for name, total in zip(rollout.groups, groups, strict=True)}
    return (
        {
            "objective/kl": kl / rows,
            "objective/kl_k2": kl2 / rows,
            "objective/kl_k3": kl3 / rows,
            "objective/scores": raw / rows,
            "objective/non_score_reward": -beta * kl / rows,
            "objective/rlhf_reward": (final - beta * kl) / rows,
            "objective/entropy": entropy / tokens,
            "tokens/response_length": tokens / rows,
            "tokens/eos_rate": eos / rows,
        }
        | (single if len(single) > 1 else {})
        | whose
    )


def disagreement(rollout: Rollout) -> dict[str, float]:
    """How far the engine was from the policy, over all workers' tokens.

    The mean gap of their log-probabilities in nats, and the share of tokens whose importance weight is truncated.
    """
    valid = rollout.mask.bool()
    ratio_N = log_ratio(rollout.logprobs, rollout.sampled)[valid].double()
    truncated = (ratio_N.exp() > TRUNCATION).double().sum()
    sums = torch.stack([torch.tensor(float(len(ratio_N)), dtype=torch.float64), ratio_N.abs().sum(), truncated])
    tokens, gap, truncated = all_sum(sums).tolist()
    return {"engine/logprob_gap": gap / tokens, "engine/truncated": truncated / tokens}


def _padded(rows: Sequence[torch.Tensor], mask_BT: torch.Tensor) -> torch.Tensor:
    """Rows of [length] as one [B, T], 0 on padding."""
    values = torch.cat(list(rows))
    padded_BT = torch.zeros(mask_BT.shape, dtype=values.dtype)
    padded_BT[mask_BT.bool()] = values
    return padded_BT
