"""What the detectors need of a step, worked by hand; and how confident a reward model may look by chance."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pipelines.training import checkpoints
from pipelines.training.calibration import calibration
from pipelines.training.rewards import Opinions, checked
from pipelines.training.rollout import Rollout
from pipelines.training.spread import judged, repeated_grams, spread


def rollout(scores: list[float], deviations: list[float] | None = None) -> Rollout:
    """Answers of 1, 2 and 3 tokens whose log-ratios to the reference sum up to 0.5, 1.0 and 3.0."""
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    logprobs = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])
    reference = torch.tensor([[-1.5, 0.0, 0.0], [-1.5, -1.5, 0.0], [-2.0, -2.0, -2.0]])
    zeros = torch.zeros(3, 3)
    made = Rollout(
        0,
        [[5]] * 3,
        [[4], [4, 1], [4, 4, 1]],
        [True] * 3,
        mask,
        logprobs,
        logprobs,
        reference,
        zeros,
        zeros,
        torch.tensor(scores),
        {},
    )
    made.deviations = torch.tensor(deviations or [])
    return made


def test_a_step_by_hand() -> None:
    """Scores 1, 2, 6 (mean 3, sample variance 7) on lengths 1, 2, 3 (variance 1): covariance 2.5, r = 2.5 / sqrt(7).
    KL 0.5, 1, 3 (mean 1.5, variance 1.75): standard error sqrt(1.75 / 3)."""
    found = spread(rollout([1.0, 2.0, 6.0]))
    assert found["objective/kl_se"] == pytest.approx(math.sqrt(1.75 / 3))
    assert found["policy/surprise"] == pytest.approx(1.0), "-log pi is 1 everywhere, the entropy 0"
    assert found["policy/surprise_se"] == 0.0
    assert found["objective/scores_sd"] == pytest.approx(math.sqrt(7.0))
    assert found["objective/length_slope"] == pytest.approx(2.5)
    assert found["objective/length_correlation"] == pytest.approx(2.5 / math.sqrt(7.0))
    assert found["objective/scores_at_max"] == pytest.approx(1 / 3)
    assert "reward/disagreement" not in found
    assert spread(rollout([1.0, 2.0, 6.0], [0.5, 0.5, 2.0]))["reward/disagreement"] == pytest.approx(1.0 / math.sqrt(7.0))


def test_equal_scores_have_no_correlation_and_all_are_the_highest() -> None:
    found = spread(rollout([2.0, 2.0, 2.0]))
    assert (found["objective/length_correlation"], found["objective/scores_at_max"], found["objective/scores_sd"]) == (
        0.0,
        1.0,
        0.0,
    )


def test_repeated_grams_by_hand() -> None:
    """1 2 1 2 1 2: 121, 212, 121, 212: two of four said before; 3 tokens have one 3-gram, 2 tokens none."""
    assert [float(part) for part in repeated_grams([[1, 2, 1, 2, 1, 2], [1, 2, 1], [7, 7]])] == [2.0, 5.0]


def test_a_judge_with_its_standard_error() -> None:
    assert judged(torch.tensor([1.0, 2.0, 6.0])) == pytest.approx({"judge/held_out": 3.0, "judge/held_out_se": math.sqrt(7 / 3)})


def test_an_ensembles_spread_passes_the_check() -> None:
    found = checked(lambda prompts, answers, ended: Opinions([1, 2], [0.1, 0.2]))([[1]] * 2, [[2]] * 2, [True] * 2)
    assert found == [1.0, 2.0]
    assert isinstance(found, Opinions)
    assert found.deviations == [0.1, 0.2]


def test_calibration_by_hand() -> None:
    """Confidence 0.75 (margin ln 3) on four pairs of which two are in order: all in one bin, |0.5 - 0.75| = 0.25."""
    margin = math.log(3.0)
    found = calibration([margin, margin, -margin, -margin])
    assert found["calibration_error"] == pytest.approx(0.25)
    assert 0.25 <= found["calibration_noise"] <= 0.75, "four pairs prove little"
    many = calibration([margin] * 750 + [-margin] * 250)
    assert many["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    assert many["calibration_noise"] < 0.05


def test_the_newest_checkpoint_before_a_step(tmp_path: Path) -> None:
    """Checkpoints of 4 and 6: before 6 it is 4's; dropped from 5 on, 4 alone is left."""
    folder = tmp_path
    for step in (4, 6):
        checkpoints.save(folder, step, {"learner": {"weight": torch.ones(1)}})
    assert [found[0] for before in (6.0, 7.0) if (found := checkpoints.newest(folder, before=before))] == [4, 6]
    assert checkpoints.newest(folder, before=4) is None
    checkpoints.drop_from(folder, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004"]
