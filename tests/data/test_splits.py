"""Splits: no group and no prompt in two, and rows that are added move no other."""

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.schemas import SPLITS
from pipelines.data.splits import split_of, without_leaks

NAMES = st.lists(st.text(max_size=8), max_size=30)
FRACTIONS = st.tuples(st.floats(0, 0.5), st.floats(0, 0.5))


def test_known_groups_stay_where_they_are() -> None:
    """A changed hash would silently move plays from test to train: these places are part of every result."""
    places = {play: split_of(play, 0.1, 0.15) for play in ("hamlet", "cymbeline", "henry-viii", "henry-v")}
    assert places == {"hamlet": "train", "cymbeline": "test", "henry-viii": "validation", "henry-v": "test"}


@given(names=NAMES, added=NAMES, fractions=FRACTIONS)
def test_added_groups_move_no_other(names: list[str], added: list[str], fractions: tuple[float, float]) -> None:
    before = {name: split_of(name, *fractions) for name in names}
    after = {name: split_of(name, *fractions) for name in [*added, *names]}
    assert all(after[name] == split for name, split in before.items())


@given(name=st.text(max_size=8), validation=st.floats(0, 0.4), test=st.floats(0, 0.4), more=st.floats(0, 0.2))
def test_a_larger_test_share_only_takes_into_test(name: str, validation: float, test: float, more: float) -> None:
    """What was held out as test is never trained on after the share has grown."""
    if split_of(name, validation, test) == "test":
        assert split_of(name, validation, test + more) == "test"


def test_shares_are_about_as_asked() -> None:
    """10,000 groups: three standard deviations of a binomial with p = 0.15 are 0.011."""
    found = pd.Series([split_of(f"group {number}", 0.1, 0.15) for number in range(10_000)]).value_counts() / 10_000
    assert abs(found["test"] - 0.15) < 0.011
    assert abs(found["validation"] - 0.1) < 0.009


def test_a_prompt_in_two_splits_stays_in_the_one_that_is_held_out() -> None:
    rows = pd.DataFrame({"prompt": ["a", " A", "b", "c", "c"], "split": ["train", "test", "train", "validation", "train"]})
    kept, dropped = without_leaks(rows)
    assert kept.to_dict("list") == {"prompt": [" A", "b", "c"], "split": ["test", "train", "validation"]}
    assert dropped == 2


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from(SPLITS)), min_size=1, max_size=40))
def test_no_prompt_is_left_in_two_splits_and_none_is_lost(rows: list[tuple[str, str]]) -> None:
    table = pd.DataFrame(rows, columns=["prompt", "split"])
    kept, dropped = without_leaks(table)
    assert (kept.groupby("prompt")["split"].nunique() == 1).all()
    assert set(kept["prompt"]) == set(table["prompt"])
    assert len(kept) + dropped == len(table)
