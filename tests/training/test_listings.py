"""Pairs taken together, by hand: every answer once, every comparison kept."""

import math

import pytest
import torch

from pipelines.errors import DataError
from pipelines.training.listings import collate_graded, collate_listings, graded, listings, standardised

WHOSE = {"group": "all", "annotator": None}


def _pair(prompt: int, chosen: int, rejected: int, **whose: object) -> dict:
    return {"prompt_ids": [prompt], "chosen_ids": [chosen, 1], "rejected_ids": [rejected, 1]} | WHOSE | whose


def test_all_comparisons_of_a_prompt_are_one_row_and_every_answer_stands_once() -> None:
    """Four ranked answers 20 > 21 > 22 > 23: six comparisons, four answers to score."""
    found = listings([_pair(5, w, lost) for w in (20, 21, 22) for lost in range(w + 1, 24)] + [_pair(6, 30, 31)])
    assert [len(row["answers"]) for row in found] == [4, 2]
    assert found[0]["answers"] == [[20, 1], [21, 1], [22, 1], [23, 1]]
    assert list(zip(found[0]["winners"], found[0]["losers"], strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    batch = collate_listings(found)
    assert next(iter(batch)) == "comparisons"
    assert batch["comparisons"].tolist() == [6, 1]
    assert batch["input_ids"].shape == (6, 3)
    assert batch["winners"].tolist() == [0, 0, 0, 1, 1, 2, 4]
    assert batch["losers"].tolist() == [1, 2, 3, 2, 3, 3, 5]
    assert batch["input_ids"][4].tolist() == [6, 30, 1]


def test_groups_and_annotators_who_contradict_one_another_are_not_put_into_one_ranking() -> None:
    rows = [_pair(5, 20, 21), _pair(5, 21, 20, group="south"), _pair(5, 20, 22), _pair(5, 22, 20, annotator="e1")]
    found = listings(rows)
    assert [(len(row["answers"]), len(row["winners"])) for row in found] == [(3, 2), (2, 1), (2, 1)]


def test_graded_answers_count_once_with_their_mean_grade() -> None:
    nan = float("nan")
    rows = [
        _pair(5, 20, 21, chosen_grade=4.0, rejected_grade=1.0),
        _pair(5, 20, 22, chosen_grade=6.0, rejected_grade=nan),
        _pair(6, 20, 22, chosen_grade=None, rejected_grade=3.0),
    ]
    found = graded(rows, "pairs.parquet")
    assert [(row["prompt_ids"], row["answer_ids"], row["grade"]) for row in found] == [
        ([5], [20, 1], 5.0),
        ([5], [21, 1], 1.0),
        ([6], [22, 1], 3.0),
    ]
    batch = collate_graded(found)
    assert batch["grades"].tolist() == [5.0, 1.0, 3.0]
    assert batch["answer_mask"].tolist() == [[0, 1, 1]] * 3
    with pytest.raises(DataError, match=r"pairs.parquet: no answer has a grade"):
        graded([_pair(5, 20, 21, chosen_grade=nan, rejected_grade=None)], "pairs.parquet")


def test_grades_are_measured_in_the_training_grades_deviations() -> None:
    """Training grades 1, 3, 5: mean 3, variance 8/3. A held-out 7 is 4 / sqrt(8/3). Equal grades are only centred."""
    splits = {"train": [{"grade": g} for g in (1.0, 3.0, 5.0)], "validation": [{"grade": 7.0}]}
    found = standardised(splits)
    sd = math.sqrt(8 / 3)
    assert [row["grade"] for row in found["train"]] == pytest.approx([-2 / sd, 0.0, 2 / sd])
    assert found["validation"][0]["grade"] == pytest.approx(4 / sd)
    assert standardised({"train": [{"grade": 2.0}] * 2})["train"][0]["grade"] == 0.0


def test_rows_of_unequal_prompts_keep_their_places() -> None:
    """The second listing's answers follow the first's, whatever their number."""
    rows = [{"prompt_ids": [1], "answers": [[2]], "winners": [0], "losers": [0]}] * 3
    assert torch.equal(collate_listings(rows)["winners"], torch.tensor([0, 1, 2]))
