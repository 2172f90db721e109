"""Groups of annotators from their pairs, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pipelines.training.groups import agreement, annotators, found_groups


def _pairs(rows: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    """Pairs from prompt, chosen, rejected and annotator."""
    table = pd.DataFrame(rows, columns=["prompt", "chosen", "rejected", "annotator"])
    return table.assign(group="all", chosen_ended=True, rejected_ended=True)


def test_agreement_by_hand() -> None:
    """North gives a pair's answers 1 and 0, the other's 0 and 2; south the opposite. sigmoid(1) = 0.731, sigmoid(-2) = 0.119."""
    belongs = pd.Series(["north", "south"], index=[4, 7])
    chosen = [{"north": 1.0, "south": -1.0}, {"north": 0.0, "south": 0.0}]
    rejected = [{"north": 0.0, "south": 0.0}, {"north": 2.0, "south": -2.0}]
    found = agreement(chosen, rejected, belongs, ["north", "south"])
    one, two = (1 / (1 + math.exp(-margin)) for margin in (1, 2))
    assert found == {
        "north": {"north": pytest.approx(one, abs=1e-6), "south": pytest.approx(1 - two, abs=1e-6)},
        "south": {"north": pytest.approx(1 - one, abs=1e-6), "south": pytest.approx(two, abs=1e-6)},
    }


def test_who_compared() -> None:
    table = _pairs([("q", "a", "b", "ann"), ("q", "a", "b", None)])  # type: ignore[list-item]
    assert annotators(table).tolist() == ["ann", "all"]
    assert annotators(table.drop(columns="annotator")).tolist() == ["all", "all"]


def test_people_who_want_the_opposite_are_parted() -> None:
    """One feature tells the answers apart, a second one is constant and a third one noise: ann and eve want more, bob less."""
    rng = np.random.default_rng(3)
    names = [f"y{k}" for k in range(6)]
    worth = {("q", name, True): np.array([k, 7.0, rng.normal()]) for k, name in enumerate(names)}
    rows = []
    for low in range(6):
        for high in range(low + 1, 6):
            rows += [("q", names[high], names[low], who) for who in ("ann", "eve")] + [("q", names[low], names[high], "bob")]
    found = found_groups(_pairs(rows), worth, 2, 1)
    assert found == {"ann": "group-1", "eve": "group-1", "bob": "group-2"}
