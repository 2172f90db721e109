"""Copying and following, by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from pipelines.evaluation.language import copied, following


def test_copied_runs_by_hand() -> None:
    """Runs of three words. "a b c d": abc and bcd, abc is in the training text; "x y": too short to have one."""
    assert copied(["A  b c d", "x y"], ["z a b C", "d e"], width=3) == 0.5
    assert copied(["a b c"], ["a b", "c d"], width=3) == 0.0, "a run does not go over the end of a text"
    assert copied(["a b"], ["a b c"], width=3) == copied(["a b c"], ["a"], width=3) == 0.0


def _tables(task: bool) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    prompts = pd.DataFrame(
        {
            "id": ["p", "q", "r"],
            "prompt": ["P", "Q", "R"],
            "reference": ["yes", "one two three", "a b"],
            "template": ["seen", "held_out", "held_out"],
        }
    )
    said = {"p": "Yes.", "q": "one three", "r": "c"}
    rows = [{"prompt_id": id_, "prompt": id_.upper(), "answer": "greedy", "text": text} for id_, text in said.items()]
    rows += [{"prompt_id": id_, "prompt": id_.upper(), "answer": "A", "text": "nothing"} for id_ in said]
    demonstrations = pd.DataFrame({"template": ["seen", "held_out"], "split": ["train", "test"]})
    if task:
        prompts["task"], demonstrations["task"] = ["t", "u", "t"], ["t", "u"]
    return pd.DataFrame(rows), prompts, demonstrations


def test_following_by_hand() -> None:
    """ROUGE-L 1, 2 * 2 / 5 and 0; of the two prompts in the held-out template 0.4; the task u has one prompt."""
    found = following(*_tables(task=True))
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["rouge_l"] == pytest.approx((1 + 0.8 + 0) / 3)
    deviations = [1 - 0.6, 0.8 - 0.6, -0.6]
    assert found["rouge_l_se"] == pytest.approx(math.sqrt(sum(d * d for d in deviations) / 2 / 3))
    assert found["rouge_l_unseen_templates"] == pytest.approx(0.4)
    assert (found["prompts_unseen_templates"], found["prompts_unseen_tasks"]) == (2, 1)
    assert found["rouge_l_unseen_tasks"] == pytest.approx(0.8)


def test_without_tasks_only_templates_are_told_apart() -> None:
    found = following(*_tables(task=False))
    assert "rouge_l_unseen_tasks" not in found
    assert found["rouge_l_unseen_templates"] == pytest.approx(0.4)
