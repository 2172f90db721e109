"""Which pairs are asked: by hand, and what must hold for any number of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.algorithms.active import choose, doubt


def test_members_that_disagree_are_worth_more_than_members_that_agree() -> None:
    """Two members. Differences 0 and ln 3: p = 1/2 and 3/4, mean 5/8, variance (1/8)^2 = 1/64. Twice 0: variance 0."""
    first = torch.tensor([[1.0, 2.0], [math.log(3.0), 5.0]])
    second = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    assert doubt(first, second).tolist() == pytest.approx([1 / 64, 0.0])


def test_one_member_doubts_what_is_near_even_odds() -> None:
    """p = 1/2: 1/4; p = 3/4: 3/16; p = 1/4: 3/16."""
    found = doubt(torch.tensor([[0.0, math.log(3.0), -math.log(3.0)]]), torch.zeros(1, 3))
    assert found.tolist() == pytest.approx([1 / 4, 3 / 16, 3 / 16])


def test_the_most_doubtful_are_asked_first() -> None:
    most, others = choose([0.1, 0.3, 0.2, 0.0], count=3, share=2 / 3, seed=1)
    assert most == [1, 2]
    assert len(others) == 1
    assert others[0] in (0, 3)
    assert choose([0.1, 0.3], count=5, share=1.0, seed=1) == ([0, 1], [])
    assert choose([0.2, 0.2, 0.2], count=1, share=1.0, seed=1) == ([0], []), "of equals the first"


@given(
    doubts=st.lists(st.floats(0.0, 0.25), max_size=30),
    count=st.integers(1, 40),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**63),
)
def test_each_pair_is_asked_once_and_none_left_out_is_more_doubtful(
    doubts: list[float], count: int, share: float, seed: int
) -> None:
    most, others = choose(doubts, count, share, seed)
    assert len({*most, *others}) == len(most) + len(others) == min(count, len(doubts))
    if most:
        least = min(doubts[number] for number in most)
        assert all(doubts[number] <= least for number in set(range(len(doubts))) - set(most))
    assert (most, others) == choose(doubts, count, share, seed)
