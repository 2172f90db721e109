"""Groups that prefer differently: weights by hand, and groups that are known because they were made."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.algorithms.groups import find_groups, most_likely_weights, worst_off


def test_the_group_that_is_worst_off() -> None:
    assert worst_off(torch.tensor([0.3, -0.2, 0.1])) == 1


def test_weights_of_one_feature_by_hand() -> None:
    """Two pairs, d = +1 and -1: by symmetry w = 0. Three +1 and one -1 without prior: sigmoid(w) = 3/4, w = ln 3.

    With d = +1 alone and ridge 1: the root of 1 - sigmoid(w) = w, 0.401058.
    """
    start = torch.zeros(1, dtype=torch.float64)
    told = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    assert float(most_likely_weights(told, start)) == pytest.approx(0.0, abs=1e-9)
    odds = torch.tensor([[1.0], [1.0], [1.0], [-1.0]], dtype=torch.float64)
    assert float(most_likely_weights(odds, start, ridge=1e-12)) == pytest.approx(math.log(3), abs=1e-6)
    root = float(most_likely_weights(told[:1], start))
    assert 1 - 1 / (1 + math.exp(-root)) == pytest.approx(root, abs=1e-9)
    assert root == pytest.approx(0.401058, abs=1e-6)


def _made(directions: torch.Tensor, people: int, pairs: int, seed: int) -> tuple[torch.Tensor, list[int], list[int]]:
    """Pairs of annotators of known groups: features of two random answers, and the Bradley-Terry choice of the group's reward."""
    generator = torch.Generator().manual_seed(seed)
    truth = [person % len(directions) for person in range(people)]
    rows, who = [], []
    for person, group in enumerate(truth):
        difference = torch.randn(pairs, directions.shape[1], generator=generator, dtype=torch.float64)
        wins = torch.rand(pairs, generator=generator, dtype=torch.float64) < torch.sigmoid(difference @ directions[group])
        rows.append(torch.where(wins[:, None], difference, -difference))
        who += [person] * pairs
    return torch.cat(rows), who, truth


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_known_groups_are_found(groups: int, seed: int) -> None:
    """Rewards along different axes (and their opposites): all of 30 annotators end with those who think alike.

    Groups are numbered by their first member, as the truth is, so they are equal, not only up to a permutation. The weights
    found point where the reward that made the choices points (cosine above 0.9).
    """
    directions = torch.zeros(groups, 6, dtype=torch.float64)
    directions[0, 0], directions[1, 0] = 3.0, -3.0
    if groups == 3:
        directions[2, 1] = 3.0
    features, who, truth = _made(directions, 30, 25, seed)
    found = find_groups(features, who, groups, seed)
    assert found.members == truth
    assert (torch.cosine_similarity(found.weights, directions) > 0.9).all()


def test_one_group_is_plain_bradley_terry() -> None:
    features, who, _ = _made(torch.tensor([[2.0, 0.0]], dtype=torch.float64), 5, 40, 1)
    found = find_groups(features, who, 1, 1, restarts=1)
    alone = most_likely_weights(features, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found.weights[0], alone)
    assert found.members == [0] * 5
    assert found.log_likelihood == pytest.approx(float(torch.nn.functional.logsigmoid(features @ alone).sum()))


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_no_group_is_empty(seed: int, groups: int) -> None:
    """On pure noise too."""
    features, who, _ = _made(torch.zeros(1, 3, dtype=torch.float64), 6, 5, seed)
    found = find_groups(features, who, groups, seed, restarts=2)
    assert set(found.members) == set(range(groups))
    assert found.members[0] == 0


def test_too_few_annotators_are_refused() -> None:
    with pytest.raises(ValueError, match="2 annotators cannot make 3 groups"):
        find_groups(torch.zeros(2, 1), [0, 1], 3, 1)
