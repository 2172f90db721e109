"""The most decisive pairs of a prompt, worked by hand from labels alone."""

import pandas as pd

from pipelines.training.pairs import decisive

# answers a, b, c, d of q1, every two compared: a beats all, b beats c and d, c beats d; q2 has one pair
LABELS = [("q1", w, lost) for w, lost in ("ab", "bd", "ad", "cd", "ac", "bc")] + [("q2", "x", "y")]
TABLE = pd.DataFrame(LABELS, columns=["prompt_id", "chosen", "rejected"])


def _kept(per_prompt: int, table: pd.DataFrame = TABLE) -> list[tuple[str, str, str]]:
    return list(decisive(table, per_prompt).itertuples(index=False, name=None))


def test_one_pair_a_prompt_sets_the_most_winning_against_the_most_losing() -> None:
    # standings of q1: a +3, b +1, c -1, d -3
    assert _kept(1) == [("q1", "a", "d"), ("q2", "x", "y")]


def test_the_next_pairs_follow_by_their_gap_and_keep_the_order_of_the_table() -> None:
    # gaps: ab 2, bd 4, ad 6, cd 2, ac 4, bc 2
    assert _kept(3) == [("q1", "b", "d"), ("q1", "a", "d"), ("q1", "a", "c"), ("q2", "x", "y")]


def test_zero_keeps_every_pair() -> None:
    assert _kept(0) == LABELS


def test_a_wrong_label_is_outvoted() -> None:
    turned = pd.DataFrame([("q1", "d", "a") if label == ("q1", "a", "d") else label for label in LABELS], columns=TABLE.columns)
    # standings: a +1, b +1, c -1, d -1; the first pair with the widest gap
    assert _kept(1, turned)[0] == ("q1", "b", "d")
