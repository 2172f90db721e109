"""Which pairs are worth a label: those on which the reward model is least sure.

Axes: M members of an ensemble, P pairs.
"""

from __future__ import annotations

import random

import torch


def doubt(first_MP: torch.Tensor, second_MP: torch.Tensor) -> torch.Tensor:
    """How unsure the members are of each pair, [P], from their scores of its two answers.

    The variance over members of p = sigmoid(r_first - r_second), as Christiano et al. 2017, section 2.2.4, choose what they ask
    people. One member alone cannot disagree with itself: then p (1 - p), which is largest at even odds (Lewis and Gale 1994).
    """
    p_MP = torch.sigmoid(first_MP.double() - second_MP.double())
    return p_MP.var(0, correction=0) if len(p_MP) > 1 else (p_MP * (1 - p_MP))[0]


def choose(doubt_P: list[float], count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of ``count`` pairs (all, where there are fewer): the most doubtful ``share`` of them, and others by seed."""
    order = sorted(range(len(doubt_P)), key=lambda number: (-doubt_P[number], number))
    most = round(min(count, len(order)) * share)
    rest = sorted(order[most:])
    drawn = random.Random(seed).sample(rest, min(count, len(order)) - most)
    return sorted(order[:most]), sorted(drawn)
