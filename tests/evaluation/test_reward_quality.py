"""What the reward model's scores are worth, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pipelines.evaluation.reward_quality import quality, reliability


def _logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


def _pairs(margins: list[float], **columns: list) -> pd.DataFrame:
    count = len(margins)
    table = {
        "id": [f"i{i}" for i in range(count)],
        "prompt_id": [f"p{i}" for i in range(count)],
        "judge": ["lexicon"] * count,
        "group": ["all"] * count,
        "source": ["judge"] * count,
        "margin": [float("nan")] * count,
        "chosen_tokens": [10] * count,
        "rejected_tokens": [10] * count,
        "chosen_reward": margins,
        "rejected_reward": [0.0] * count,
        "filler_reward": margins,
    }
    return pd.DataFrame(table | columns)


def test_calibration_by_hand() -> None:
    """Ten pairs at confidence 0.8 of which 6 are right, ten at 0.6 of which 7 are: (10 * 0.2 + 10 * 0.1) / 20 = 0.15."""
    sure, unsure = _logit(0.8), _logit(0.6)
    margins = [sure] * 6 + [-sure] * 4 + [unsure] * 7 + [-unsure] * 3
    assert quality(_pairs(margins), 100, 1)["calibration_error"] == pytest.approx(0.15, abs=1e-6)
    bins = reliability(_pairs(margins))
    assert bins["pairs"].tolist() == [10, 10]
    assert bins["confidence"].tolist() == pytest.approx([0.6, 0.8], abs=1e-6)
    assert bins["accuracy"].tolist() == pytest.approx([0.7, 0.6], abs=1e-6)


def test_a_calibrated_model_has_no_calibration_error() -> None:
    """Labels drawn from the model's own probabilities: with 40,000 pairs the error is within sampling noise of 0."""
    rng = np.random.default_rng(5)
    margins = rng.normal(0.0, 2.0, 40_000)
    chosen_first = rng.random(40_000) < 1 / (1 + np.exp(-margins))
    assert quality(_pairs(np.where(chosen_first, margins, -margins).tolist()), 10, 1)["calibration_error"] < 0.01


def test_accuracy_by_group_source_and_length() -> None:
    """A tie counts half; the chosen answer is longer where its tokens exceed the other's by over a third of its own."""
    pairs = _pairs(
        [1.0, -1.0, 0.0, 2.0],
        group=["north", "north", "south", "south"],
        source=["judge", "hh", "hh", "hh"],
        chosen_tokens=[12, 6, 9, 8],
        rejected_tokens=[6, 12, 12, 12],
    )
    found = quality(pairs, 200, 1)
    assert found["by_group"]["north"]["accuracy"] == 0.5
    assert found["by_group"]["south"]["accuracy"] == 0.75
    assert {name: part["pairs"] for name, part in found["by_source"].items()} == {"hh": 3, "judge": 1}
    assert {name: part["pairs"] for name, part in found["by_length"].items()} == {"alike": 2, "longer": 1, "shorter": 1}
    assert found["by_group"]["north"]["longer_wins"] == 0.5
    assert found["by_group"]["south"]["longer_wins"] == 0.0
    assert "people" not in found


def test_the_interval_resamples_prompts() -> None:
    """Two prompts, one always right and one always wrong: resampled accuracies are 0, 1/2 and 1."""
    pairs = _pairs([1.0, 1.0, -1.0, -1.0], prompt_id=["a", "a", "b", "b"])
    assert quality(pairs, 500, 1)["pair_accuracy_ci"] == [0.0, 1.0]


def test_agreement_with_people_and_their_grades() -> None:
    """Three pairs of people, two of them in their order; margins 2, 1, -1 against grades 3, 2, 1: ranks agree fully."""
    pairs = _pairs([2.0, 1.0, -1.0, 5.0], judge=["people"] * 3 + ["lexicon"], margin=[3.0, 2.0, 1.0, float("nan")])
    people = quality(pairs, 100, 1)["people"]
    assert (people["pairs"], people["graded"], people["grade_correlation"]) == (3, 3, 1.0)
    assert people["agreement"] == pytest.approx(2 / 3, abs=1e-6)
    ungraded = quality(_pairs([2.0, 1.0], judge=["people"] * 2), 100, 1)["people"]
    assert (ungraded["graded"], ungraded["grade_correlation"]) == (0, None)


def test_what_filler_does_to_a_score() -> None:
    """Scores 1, 3 (chosen) and 0, 0: standard deviation sqrt(1.5). Filler adds 0.5 and takes 0.1: + 0.2 on average."""
    pairs = _pairs([1.0, 3.0], filler_reward=[1.5, 2.9])
    found = quality(pairs, 100, 1)["filler"]
    assert found["change_sd"] == pytest.approx(0.2 / math.sqrt(1.5), abs=1e-6)
    assert found["rises"] == 0.5
    twice = pd.concat([pairs, pairs.iloc[[1]]])  # an answer that stands in two pairs counts once
    assert quality(twice, 100, 1)["filler"]["rises"] == 0.5


def test_without_pairs_there_are_no_figures() -> None:
    assert quality(_pairs([]), 100, 1) == {}
