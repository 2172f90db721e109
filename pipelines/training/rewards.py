"""What scores answers during on-policy training: a source is plain data that travels to the workers and opens there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pipelines.algorithms.groups import worst_off
from pipelines.config import Judge, Precision
from pipelines.errors import DataError
from pipelines.training.distributed import all_sum

if TYPE_CHECKING:
    from pipelines.models.reward import RewardModel

Row = list[int]
RewardFunction = Callable[[Sequence[Row], Sequence[Row], Sequence[bool]], list[float]]
"""Prompts, answers (EOS included where emitted) and whether each ended by itself -> one score an answer."""


class Opinions(list[float]):
    """The scores of an ensemble, with the standard deviation of its members' scores for each answer."""

    def __init__(self, scores: list[float], deviations: list[float]) -> None:
        super().__init__(scores)
        self.deviations = deviations


class WorstOff(list[float]):
    """The scores of the group that is worst off, with every group's scores by its name."""

    def __init__(self, scores: list[float], groups: dict[str, list[float]]) -> None:
        super().__init__(scores)
        self.groups = groups


class RewardSource(Protocol):
    """Picklable; opened once on every worker."""

    def open(self, tokenizer: Any, device: str) -> RewardFunction:
        """Load whatever it takes and return the function."""


@dataclass(frozen=True)
class LearnedReward:
    """The reward model, or an ensemble, on top of the SFT model's folder; scores are centred on the SFT model's own answers.

    An ensemble gives its mean less ``deviations`` standard deviations.
    """

    folder: Path
    sft: Path
    batch_size: int
    precision: Precision
    deviations: float = 0.0

    def open(self, tokenizer: Any, device: str) -> RewardFunction:
        """Load the reward model, every member of it."""
        from pipelines.models.halves import halve_frozen
        from pipelines.models.reward import cautious, load_members, score_members

        models = load_members(self.folder, self.sft, device)
        for model in models:
            halve_frozen(model.trunk, self.precision)

        def scores(prompts: Sequence[Row], answers: Sequence[Row], ended: Sequence[bool]) -> list[float]:
            found = score_members(models, list(prompts), list(answers), self.batch_size, self.precision)
            taken = cautious(found, self.deviations)
            return Opinions(taken, found.std(0, correction=0).tolist()) if len(models) > 1 else taken

        return scores

    def model(self, device: str) -> RewardModel:
        """The reward model itself (an ensemble's first member), for a critic to begin with."""
        from pipelines.models.reward import load_reward

        return load_reward(self.folder, self.sft, device)


@dataclass(frozen=True)
class MaxMinReward:
    """Of all groups' reward models the one whose group is worst off under the policy as it is now (MaxMin-RLHF)."""

    folder: Path
    sft: Path
    batch_size: int
    precision: Precision

    def open(self, tokenizer: Any, device: str) -> RewardFunction:
        """Load every group's reward model."""
        from pipelines.models.halves import halve_frozen
        from pipelines.models.reward import load_groups, score

        models = load_groups(self.folder, self.sft, device)
        for model in models.values():
            halve_frozen(model.trunk, self.precision)

        def scores(prompts: Sequence[Row], answers: Sequence[Row], ended: Sequence[bool]) -> list[float]:
            asked, said = list(prompts), list(answers)
            return maxmin({name: score(model, asked, said, self.batch_size, self.precision) for name, model in models.items()})

        return scores


def maxmin(groups: dict[str, list[float]]) -> WorstOff:
    """The scores of the group with the smallest mean over all workers' answers.

    Chakraborty et al. 2024, section 4: in each step u = argmin_u F_u(pi), and PPO goes up F_u. F_u(pi) = E[r_u] - beta
    KL(pi || pi_ref) is estimated on the step's own answers; its KL is every group's, so it does not decide. It is the least
    expectation that is raised, not the expectation of each answer's least score, which is smaller.
    """
    values_GN = torch.tensor(list(groups.values()), dtype=torch.float64)
    sums_G = all_sum(values_GN.sum(1))
    means_G = sums_G / all_sum(torch.tensor(float(values_GN.shape[1]), dtype=torch.float64))
    return WorstOff(list(groups.values())[worst_off(means_G)], groups)


@dataclass(frozen=True)
class JudgeReward:
    """A judge of texts as the reward."""

    judge: Judge
    root: Path = Path()

    def open(self, tokenizer: Any, device: str) -> RewardFunction:
        """Make the judge; it sees the texts without special tokens."""
        from pipelines.data.tokens import decode
        from pipelines.judges import make_judge

        judged = make_judge(self.judge, self.root, device=device)

        def scores(prompts: Sequence[Row], answers: Sequence[Row], ended: Sequence[bool]) -> list[float]:
            return judged([decode(tokenizer, row) for row in prompts], [decode(tokenizer, row) for row in answers])

        return scores


@dataclass(frozen=True)
class Term:
    """A source with its weight in the sum that is maximised; ``name`` stands in the history."""

    name: str
    weight: float
    source: RewardSource


@dataclass(frozen=True)
class OpenTerm:
    """The same on a worker, ready to score."""

    name: str
    weight: float
    score: RewardFunction


def open_terms(terms: Sequence[Term], tokenizer: Any, device: str) -> list[OpenTerm]:
    """Open every term on this worker."""
    return [OpenTerm(term.name, term.weight, checked(term.source.open(tokenizer, device))) for term in terms]


def checked(function: RewardFunction) -> RewardFunction:
    """The same function; what it returns must be one number an answer."""

    def scores(prompts: Sequence[Row], answers: Sequence[Row], ended: Sequence[bool]) -> list[float]:
        found = function(prompts, answers, ended)
        try:
            numbers = [float(value) for value in found]
        except (TypeError, ValueError) as error:
            raise DataError(f"the reward returned {type(found).__name__}, expected a list of numbers: {error}") from error
        if len(numbers) != len(answers):
            raise DataError(f"the reward returned {len(numbers)} scores for {len(answers)} answers; return one an answer")
        if isinstance(found, WorstOff):
            return WorstOff(numbers, found.groups)
        return Opinions(numbers, found.deviations) if isinstance(found, Opinions) else numbers

    return scores
