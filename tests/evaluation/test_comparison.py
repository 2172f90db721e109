"""Win, lose and tie by hand."""

import numpy as np
import pandas as pd
import pytest

from pipelines.errors import DataError
from pipelines.evaluation.comparison import answer_letters, compare, outcomes, ratings, sampled
from pipelines.evaluation.paired import ELO


def _table(scores: dict[tuple[str, str], float]) -> pd.DataFrame:
    rows = [{"prompt_id": id_, "answer": letter, "gold": gold, "tokens": 9} for (id_, letter), gold in scores.items()]
    return pd.DataFrame(rows)


def test_a_difference_equal_to_the_margin_is_a_tie() -> None:
    # 0.35 - 0.3 is 0.04999... and 0.15 - 0.1 is 0.05 or a little less in floating point; both are ties at 0.05
    ours, theirs = np.array([0.35, 0.15, 0.3, 0.1, 0.3501, 0.2999]), np.array([0.3, 0.1, 0.35, 0.15, 0.3, 0.35])
    assert outcomes(ours, theirs, 0.05).tolist() == [0.5, 0.5, 0.5, 0.5, 1.0, 0.0]
    assert outcomes(np.array([1.0, 0.0, 0.5]), np.array([0.0, 1.0, 0.5]), 0.0).tolist() == [1.0, 0.0, 0.5]


def test_answers_are_compared_letter_by_letter_and_greedy_ones_left_out() -> None:
    ours = _table({("p", "A"): 0.9, ("p", "B"): 0.0, ("q", "A"): 0.5, ("q", "B"): 0.52, ("p", "greedy"): 0.9})
    theirs = _table({("q", "B"): 0.5, ("q", "A"): 0.1, ("p", "B"): 0.4, ("p", "A"): 0.2, ("p", "greedy"): 0.0})
    result = compare(ours, theirs, "gold", margin=0.05, resamples=500, seed=1)  # win, lose | win, tie
    assert (result.win, result.lose, result.tie, result.win_rate) == (0.5, 0.25, 0.25, 0.625)
    assert result.comparisons == 4
    # prompt means 0.5 and 0.75, so resampled means are 0.5, 0.625 or 0.75
    assert result.interval == (0.5, 0.75)
    # prompt p is balanced, prompt q is won: one prompt alone proves nothing; equal lengths leave the win rate as it is
    assert (result.signs.won, result.signs.lost, result.signs.p) == (1, 0, 1.0)
    assert result.length_controlled == pytest.approx(0.625, abs=1e-12)


def test_a_model_ties_with_itself() -> None:
    table = _table({(id_, letter): 0.3 for id_ in "pqr" for letter in "AB"})
    result = compare(table, table, "gold", margin=0.0, resamples=100, seed=1)
    assert (result.win, result.lose, result.tie, result.win_rate, result.interval) == (0, 0, 1, 0.5, (0.5, 0.5))


def test_swapping_the_models_swaps_wins_and_losses() -> None:
    rng = np.random.default_rng(2)
    one, two = (_table({(f"p{i}", letter): rng.normal() for i in range(20) for letter in "ABC"}) for _ in range(2))
    there, back = (compare(*pair, "gold", margin=0.3, resamples=800, seed=4) for pair in ((one, two), (two, one)))
    assert (there.win, there.lose, there.tie) == (back.lose, back.win, back.tie)
    assert there.win_rate + back.win_rate == pytest.approx(1.0, abs=1e-12)


def test_different_prompts_are_refused() -> None:
    with pytest.raises(DataError, match="different prompts"):
        compare(_table({("p", "A"): 1.0}), _table({("q", "A"): 1.0}), "gold", margin=0.0, resamples=10, seed=1)


def test_letters() -> None:
    assert answer_letters(3) == ["A", "B", "C"]
    assert answer_letters(28)[24:] == ["Y", "Z", "A1", "B1"]


def test_sampled_drops_the_greedy_answers() -> None:
    assert sampled(_table({("p", "greedy"): 1.0, ("p", "A"): 2.0}))["answer"].tolist() == ["A"]


def test_ratings_of_three_models_by_hand() -> None:
    """Two prompts with two answers each; every pair of models has half a win each way added.

    ppo beats sft in 3 of 4 comparisons: with dpo as sft's twin, equal chances make both its ratings
    log((3 + 1/2) / (1 + 1/2)) in nats at sft = dpo = 0.
    """
    sft = {(id_, letter): 0.0 for id_ in "pq" for letter in "AB"}
    ppo = {("p", "A"): 1.0, ("p", "B"): 1.0, ("q", "A"): 1.0, ("q", "B"): -1.0}
    tables = {"sft": _table(sft), "dpo": _table(sft), "ppo": _table(ppo)}
    found = ratings(tables, "gold", margin=0.0, resamples=300, seed=1)
    assert list(found) == ["sft", "dpo", "ppo"]
    assert found["sft"] == (0.0, (0.0, 0.0))
    assert found["dpo"][0] == pytest.approx(0.0, abs=1e-9)
    assert found["ppo"][0] == pytest.approx(ELO * np.log(3.5 / 1.5), abs=1e-9)
    # resampled prompts: q twice gives 2 of 4, p twice 4 of 4
    assert found["ppo"][1] == pytest.approx((0.0, ELO * np.log(4.5 / 0.5)), abs=1e-9)
