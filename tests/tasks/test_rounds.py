"""When a loop is over, and which of its rounds is the best."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.rounds import Loop, Round


def loop(*golds: float) -> Loop:
    rounds = tuple(Round(number, 10, 0.7, gold, 0.01, 1.0, 0.1, 0.5) for number, gold in enumerate(golds))
    return Loop(Path(), Path(), "ppo", {}, rounds)


@pytest.mark.parametrize(
    ("golds", "best", "over"),
    [
        ([0.1], 0, False),
        ([0.1, 0.2, 0.3, 0.4], 3, True),  # three rounds after round 0, as asked
        ([0.3, 0.2, 0.1], 0, True),  # no gain for two rounds
        ([0.1, 0.3, 0.2], 1, False),  # for one
        ([0.3, 0.2, 0.4], 2, False),  # the second one gained
        ([0.3, 0.3, 0.3], 0, True),  # equal is no gain
    ],
)
def test_a_loop_ends_after_its_rounds_or_when_gold_stands_still(golds: list[float], best: int, over: bool) -> None:
    found = loop(*golds)
    assert found.best.number == best
    assert found.over(3) is over


def test_a_loop_that_has_not_begun_is_not_over() -> None:
    assert not loop().over(1)
