"""What groups make of the same answers: the worked example, and figures by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipelines.config import Evaluate
from pipelines.evaluation.groups import by_group, maxmin_choice, preference_tables, questions, worst_group

RATINGS = np.array([[1, 1, 2], [2, 1, 2], [3, 1, 0], [0, 2, 3]])
"""Four groups' ratings of y1, y2, y3."""
TABLE = np.array([[0.500, 0.269, 0.269], [0.731, 0.500, 0.269], [0.881, 0.953, 0.731], [0.119, 0.047, 0.269]])
"""P(y1 > y2), P(y1 > y3), P(y2 > y3) in each of them."""


def test_preference_tables_of_the_worked_example() -> None:
    """The other half of each table is 1 - P, its diagonal 0.5."""
    tables = preference_tables(RATINGS)
    np.testing.assert_allclose(tables[:, [0, 0, 1], [1, 2, 2]], TABLE, atol=5e-4)
    np.testing.assert_allclose(tables + tables.transpose(0, 2, 1), 1.0)


def test_the_choice_of_the_worked_example_is_y2() -> None:
    """The smallest ratings of y1, y2, y3 are 0, 1, 0. By the mean (1.5, 1.25, 1.75) it would be y3."""
    assert maxmin_choice(RATINGS) == 1
    assert int(RATINGS.mean(axis=0).argmax()) == 2


def test_the_worked_example_as_a_question() -> None:
    rows = [
        {"prompt": "Q", "answer": f"y{k + 1}", "ended": True, "group": f"g{g}", "score": float(RATINGS[g, k])}
        for g in range(4)
        for k in range(3)
    ]
    (found,) = questions(pd.DataFrame(rows), 5, ["Q"])
    assert (found["prompt"], found["answers"], found["choice"]) == ("Q", ["y1", "y2", "y3"], 1)
    assert found["pairs"] == [(0, 1), (0, 2), (1, 2)]
    np.testing.assert_allclose([found["rows"][f"g{g}"] for g in range(4)], TABLE, atol=5e-4)


def _samples(texts: list[str]) -> pd.DataFrame:
    columns = {"tokens": 3, "reward": 0.0, "ended": True}
    rows = [{"prompt_id": f"p{i}", "prompt": f"Q{i}", "answer": "A", "text": text, **columns} for i, text in enumerate(texts)]
    greedy = [row | {"answer": "greedy", "reward": float("nan")} for row in rows]
    return pd.DataFrame([*rows, *greedy])


def test_figures_of_each_group_by_hand() -> None:
    """Two prompts. North: ours 2 and 1 against 1 and 1: a win and a tie, 0.75. South turned round: a loss and a tie, 0.25."""
    ours, theirs = _samples(["a", "b"]), _samples(["b", "b"])
    north = {("Q0", "a", True): 2.0, ("Q0", "b", True): 1.0, ("Q1", "b", True): 1.0}
    scores = {"north": north, "south": {key: -value for key, value in north.items()}}
    found = by_group(ours, theirs, scores, Evaluate(bootstrap=50), 1)
    assert {name: (own["reward_mean"], own["win_rate"]) for name, own in found.items()} == {
        "north": (1.5, 0.75),
        "south": (-1.5, 0.25),
    }
    assert found["north"]["win_rate_ci"] == [0.5, 1.0]
    assert worst_group(found) == "south"
