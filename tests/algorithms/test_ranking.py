"""Losses over ranked answers, by hand. Scores ln 1, ln 2, ln 4: odds are whole numbers."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.algorithms.ranking import comparisons_loss, mean_over_prompts, plackett_luce_loss

LOGS = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).log()


def _ranked(order: list[int], prompt: int = 0) -> tuple[list[int], list[int], list[int]]:
    """Winners, losers and prompts of every two answers of a ranking, the best one first."""
    pairs = list(combinations(order, 2))
    return [w for w, _ in pairs], [lost for _, lost in pairs], [prompt] * len(pairs)


def test_all_pairs_of_three_by_hand() -> None:
    """Ranked 4, 2, 1: wins at odds 4:2, 4:1, 2:1, so P = 2/3, 4/5, 2/3 and the loss is their mean -log."""
    loss = comparisons_loss(LOGS, *map(torch.tensor, _ranked([2, 1, 0])))
    assert float(loss) == pytest.approx(-(2 * math.log(2 / 3) + math.log(4 / 5)) / 3, abs=1e-12)


def test_a_ranking_by_hand() -> None:
    """Ranked 4, 2, 1: 4 of 7, then 2 of 3: -log(4/7 * 2/3) over two choices. The worst order: 1 of 7, then 2 of 6."""
    best = plackett_luce_loss(LOGS, *map(torch.tensor, _ranked([2, 1, 0])))
    assert float(best) == pytest.approx(-math.log(4 / 7 * 2 / 3) / 2, abs=1e-12)
    worst = plackett_luce_loss(LOGS, *map(torch.tensor, _ranked([0, 1, 2])))
    assert float(worst) == pytest.approx(-math.log(1 / 7 * 2 / 6) / 2, abs=1e-12)


def test_what_was_not_compared_is_not_offered() -> None:
    """4 beat 1, 2 beat 1, 4 and 2 were never compared: 4 of 5 and 2 of 3."""
    loss = plackett_luce_loss(LOGS, torch.tensor([2, 1]), torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert float(loss) == pytest.approx(-math.log(4 / 5 * 2 / 3) / 2, abs=1e-12)


@pytest.mark.parametrize("loss", [comparisons_loss, plackett_luce_loss])
def test_two_answers_are_bradley_and_terry(loss) -> None:  # type: ignore[no-untyped-def]
    """r(y_w) = 0.5 and r(y_l) = 0.8: log(1 + e^0.3) = 0.8544."""
    scores = torch.tensor([0.5, 0.8], dtype=torch.float64)
    found = loss(scores, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    assert float(found) == pytest.approx(0.8544, abs=5e-5)


def test_a_prompt_weighs_one_whatever_its_comparisons() -> None:
    """Three comparisons of value 1 and one of value 5: (1 + 5) / 2, not 8 / 4."""
    assert float(mean_over_prompts(torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.tensor([0, 0, 0, 1]))) == 3.0


@pytest.mark.parametrize("loss", [comparisons_loss, plackett_luce_loss])
def test_prompts_do_not_touch_one_another(loss) -> None:  # type: ignore[no-untyped-def]
    """Two prompts in a batch: the mean of each one's loss alone."""
    alone = [float(loss(LOGS, *map(torch.tensor, _ranked(order)))) for order in ([2, 1, 0], [0, 2, 1])]
    one, two = _ranked([2, 1, 0]), _ranked([3, 5, 4], prompt=1)
    both = loss(torch.cat([LOGS, LOGS]), *(torch.tensor(a + b) for a, b in zip(one, two, strict=True)))
    assert float(both) == pytest.approx(sum(alone) / 2, abs=1e-12)


def test_the_gradient_of_a_ranking_is_shares_less_choices() -> None:
    """d/dr of -log P = (share in each choice) - (chosen), over two choices: for 4, 2, 1 of 7 and then 2, 1 of 3."""
    scores = LOGS.clone().requires_grad_()
    plackett_luce_loss(scores, *map(torch.tensor, _ranked([2, 1, 0]))).backward()
    expected = torch.tensor([1 / 7 + 1 / 3, 2 / 7 + 2 / 3 - 1, 4 / 7 - 1], dtype=torch.float64) / 2
    torch.testing.assert_close(scores.grad, expected)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5), st.floats(-3, 3))
def test_a_shift_of_all_scores_changes_nothing(scores: list[float], shift: float) -> None:
    values = torch.tensor(scores, dtype=torch.float64)
    told = [torch.tensor(part) for part in _ranked(list(range(len(scores))))]
    for loss in (comparisons_loss, plackett_luce_loss):
        assert float(loss(values + shift, *told)) == pytest.approx(float(loss(values, *told)), abs=1e-9)
