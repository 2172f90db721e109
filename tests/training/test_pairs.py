"""The most decisive pairs of a prompt, worked by hand from labels alone; pairs that are longer than the context."""

import json
from pathlib import Path

import pandas as pd
import pytest

from pipelines.config.data import Prepare, Source
from pipelines.data import streams
from pipelines.data.lengths import fit_pairs
from pipelines.data.rows import ingest
from pipelines.data.schemas import PAIRS
from pipelines.data.tables import write_stream
from pipelines.errors import DataError
from pipelines.training.pairs import decisive, read_rows
from tests import small

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


def test_pairs_beyond_the_context_are_refused_dropped_or_lose_the_beginning_of_their_prompt() -> None:
    """A context of 6: the first fits, the second's longer answer leaves room for 2 tokens of its prompt, the third's for none."""
    rows = [
        {"prompt_ids": [1, 2, 3], "chosen_ids": [4], "rejected_ids": [5, 6, 7]},
        {"prompt_ids": [1, 2, 3, 4], "chosen_ids": [5], "rejected_ids": [6, 7, 8, 9]},
        {"prompt_ids": [1], "chosen_ids": [2] * 6, "rejected_ids": [3]},
    ]
    with pytest.raises(
        DataError, match=r"^long-row pairs: a row of 8 tokens .* context of 6 \(2 of 3 rows\) \| context 6 \| .*raise\|"
    ):
        fit_pairs(rows, 6, "raise", "pairs")
    assert fit_pairs(rows, 8, "raise", "pairs") == (rows, {})
    assert fit_pairs(rows, 6, "drop", "pairs") == (rows[:1], {"rows_dropped_by_length": 2, "rows_truncated": 0})
    kept, counts = fit_pairs(rows, 6, "truncate", "pairs")
    assert kept == [rows[0], rows[1] | {"prompt_ids": [3, 4]}]
    assert counts == {"rows_dropped_by_length": 1, "rows_truncated": 1}
    with pytest.raises(DataError, match="0 of 1 rows left: all longer than 6 tokens"):
        fit_pairs(rows[2:], 6, "truncate", "pairs")


def test_a_prompt_that_is_too_long_is_refused_with_the_setting_that_says_otherwise(tmp_path: Path) -> None:
    """long_prompt.jsonl: 30 pairs from the file to token rows; the 600 words of one prompt are more than 512 tokens."""
    rows = [{"prompt": f"Q{n}: " + "to be " * (300 * (n == 7)), "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(30)]
    (tmp_path / "long_prompt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = Source(path="long_prompt.jsonl", split="train")
    prepare = Prepare().model_copy(update={"sources": {"mine": source}})
    found = ingest(prepare, tmp_path, tmp_path / "scratch", 1)
    write_stream(streams.pairs_of(found), tmp_path / "pairs.parquet", PAIRS)
    tokens = read_rows(tmp_path / "pairs.parquet", small.tokenizer())["train"]
    with pytest.raises(DataError) as caught:
        fit_pairs(tokens, 512, "raise", "pairs.parquet (train)")
    for part in (" tokens exceeds", "(1 of 30 rows)", "context 512", "excess_length: raise|drop|truncate"):
        assert part in str(caught.value)
    kept, counts = fit_pairs(tokens, 512, "truncate", "pairs.parquet (train)")
    assert (len(kept), counts["rows_truncated"]) == (30, 1)
