"""n-grams, near duplicates, contamination, repeats and drift against answers worked out by hand or by brute force."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data import near, seen, spill
from pipelines.data.drift import columns, compare, psi_counts, psi_numbers
from pipelines.data.grams import grams
from pipelines.data.near import Signatures, overlaps
from pipelines.data.texts import normal, oddities, personal, unremarkable

TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "cc", "é"]), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=8)


@given(texts=TEXTS, width=st.integers(1, 8))
@settings(max_examples=200)
def test_equal_grams_have_equal_hashes_and_only_those(texts: list[str], width: int) -> None:
    hashes, offsets = grams(texts, width)
    words = [text.split() for text in texts]
    expected = [
        tuple(own[start : start + width]) for own in words for start in range(max(len(own) - width + 1, 1))
    ]  # fmt: skip
    assert len(hashes) == len(expected) == offsets[-1]
    of_gram: dict[tuple, set[int]] = {}
    for gram, value in zip(expected, hashes.tolist(), strict=True):
        of_gram.setdefault(gram, set()).add(value)
    assert all(len(values) == 1 for values in of_gram.values())
    assert len({next(iter(values)) for values in of_gram.values()}) == len(of_gram)


def test_near_duplicates_are_found_and_others_are_not(tmp_path: Path) -> None:
    """100 words have 96 shingles; one word changed at the end leaves 95 of 97 (0.98), every fifth word changed none."""
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randrange(10**6)}" for _ in range(100)) for _ in range(200)]
    near = [" ".join([*text.split()[:-1], "changed"]) for text in texts[:20]]
    far = [" ".join("changed" if place % 5 == 0 else word for place, word in enumerate(text.split())) for text in texts[20:40]]
    with Signatures(tmp_path / "signatures.bin") as signatures:
        for start in range(0, 240, 70):
            signatures.add([*texts, *near, *far][start : start + 70])
        assert signatures.near(0.8).tolist() == [[200 + number, number] for number in range(20)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("held", [1, 2**18], ids=["on disk", "in memory"])
def test_overlap_with_test_prompts_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(spill, "FLUSH", held)
    words = [f"word{n}" for n in range(13)]
    test = " ".join(words)  # 6 grams of 8
    train = [" ".join([*words[:12], "x"]), " ".join(words[5:]), " ".join(words[6:]), "word0 word1", test + " more"]
    rows = [(np.array([10, 11, 12]), train[:3]), (np.array([13, 14]), train[3:])]
    for part in range(spill.PARTS if held == 1 else 0):
        (tmp_path / f"held.{part}").write_bytes(b"left by a run that was killed")
    found = overlaps([[test], ["word0 word1"]], rows, 0.5, tmp_path)
    assert found.shares.tolist() == [1.0, 1.0]
    assert found.rows.tolist() == [14, 13]
    assert {row: share for row, (_, share) in found.over.items()} == {10: pytest.approx(5 / 6), 13: 1.0, 14: 1.0}
    assert overlaps([], [(np.array([0]), ["a"])], 0.5, tmp_path).over == {}
    assert overlaps([[test]], [], 0.5, tmp_path).shares.tolist() == [0.0]
    assert list(tmp_path.iterdir()) == []


@given(tests=TEXTS, rows=TEXTS, common=st.integers(1, 3), limit=st.sampled_from([0.0, 0.4, 1.0]))
@settings(max_examples=100, deadline=None)
def test_overlaps_as_by_brute_force(
    tmp_path_factory: pytest.TempPathFactory, tests: list[str], rows: list[str], common: int, limit: float
) -> None:
    """Oracle: sets of tuples of words; ties go to the first row, and for a row to the first test prompt."""

    def sets(texts: list[str]) -> list[set[tuple[str, ...]]]:
        words = [text.split() for text in texts]
        return [{tuple(own[at : at + 8]) for at in range(max(len(own) - 7, 1))} for own in words]

    asked, held = sets(tests), sets(rows)
    often = Counter(gram for own in asked for gram in own)
    rare = [{gram for gram in own if often[gram] <= common} for own in asked]
    shares = [[len(own & row) / len(own) if own else 0.0 for row in held] for own in rare]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "COMMON", common)
        patch.setattr(near, "CHUNK", 3)
        patch.setattr(spill, "FLUSH", 20)
        numbers = np.arange(5, 5 + len(rows))
        found = overlaps([tests[:2], tests[2:]], [(numbers, rows)], limit, tmp_path_factory.mktemp("overlaps"))
    assert found.shares.tolist() == [max(own) for own in shares]
    assert found.rows.tolist() == [5 + own.index(max(own)) if max(own) else -1 for own in shares]
    best = {5 + row: max((own[row], -test) for test, own in enumerate(shares)) for row in range(len(rows))}
    over = {row: (-test, share) for row, (share, test) in best.items() if limit and share >= limit}
    assert found.over == over


@given(keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), asked=st.lists(st.integers(0, 2**64 - 1), max_size=40))
@settings(max_examples=50, deadline=None)
def test_every_key_that_was_asked_is_marked(tmp_path_factory: pytest.TempPathFactory, keys: list, asked: list) -> None:
    """Keys with the same first ten bits share a mark; of 2**10 marks no more are set than there are keys."""
    with spill.Spill(tmp_path_factory.mktemp("marks") / "marks") as kept:
        kept.add(spill.numbered(np.array(keys, np.uint64), 0))
        marks = near._marks(kept)
    known = {key >> 54 for key in keys}
    assert len(marks) == 2**10 // 8
    assert near._marked(marks, np.array(keys + asked, np.uint64)).tolist() == [key >> 54 in known for key in keys + asked]


def test_the_text_of_a_template_is_no_contamination(tmp_path: Path) -> None:
    template = "answer the following question in one short sentence please: what is"
    tests = [f"{template} {n}" for n in range(30)]
    found = overlaps([tests], [(np.array([0]), [f"{template} other"])], 0.5, tmp_path)
    assert found.shares.max() == 0.0


@given(rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), max_size=30), flush=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_repeats_and_conflicts_as_by_brute_force(tmp_path_factory: pytest.TempPathFactory, rows: list, flush: int) -> None:
    folder = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "FLUSH", 25 * flush)
        patch.setattr(spill, "FLUSH", 2 * flush)
        found = seen.Seen(folder / "seen")
        for text, way in rows:
            found.add((text,), way)
        repeats, conflicts = found.find()
    assert list(folder.iterdir()) == []
    first: dict[tuple[str, int], int] = {}
    expected = []
    for number, row in enumerate(rows):
        if row in first:
            expected.append([number, first[row]])
        first.setdefault(row, number)
    assert repeats.tolist() == expected
    both = [[first[(text, 0)], first[(text, 1)]] for text in "abc" if (text, 0) in first and (text, 1) in first]
    assert sorted(conflicts.tolist()) == sorted(both)


def test_normal_form() -> None:
    assert normal("  A\tB\n") == "a b"
    assert normal("Ｓtraße") == "strasse"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("mail me: a.b+c@example.co.uk!", ["email"]),
        ("call +44 20 7946 0958", ["phone"]),
        ("(030) 123 4567 or 555-123-4567", ["phone", "phone"]),
        ("4111-1111-1111-1111", ["credit_card"]),
        ("4111 1111 1111 1112, 12345678901234567890123, 3.14159265358979, a@b, in 1999-2004", []),
    ],
)
def test_personal_data(text: str, kinds: list[str]) -> None:
    assert [kind for kind, _, _ in personal(text)] == kinds


@given(text=st.text(st.sampled_from("a<|>[@. 0123456789-+é\u200b\u0430"), max_size=40))
@settings(max_examples=300)
def test_nothing_is_found_in_what_is_unremarkable(text: str) -> None:
    if unremarkable(text):
        assert oddities(text) == []
        assert personal(text) == []
    assert not unremarkable("a" + "5" * 7)
    assert unremarkable("a plain text of 2026, with (brackets) & more")


def test_psi_by_hand() -> None:
    """Half and half against one quarter: (0.25 - 0.5) ln(0.25 / 0.5) + (0.75 - 0.5) ln(0.75 / 0.5) = 0.2747."""
    assert psi_counts(Counter(a=2, b=2), Counter(a=1, b=3)) == pytest.approx(0.25 * np.log(2) + 0.25 * np.log(1.5))
    same = np.arange(1000.0)
    assert psi_numbers(same, same) == 0.0
    assert psi_numbers(same, same + 500) > 0.25


def test_drifted_columns_are_named(tmp_path: Path) -> None:
    old = pa.schema([("id", pa.string()), ("label", pa.bool_()), ("gone", pa.string())])
    new = pa.schema([("id", pa.string()), ("label", pa.string()), ("new", pa.string())])
    assert columns("labels", old, new) == [
        "labels: columns added: new",
        "labels: columns removed: gone",
        "labels: columns retyped: label (bool -> string)",
    ]
    tables = {"old": {"id": ["a", "b"], "source": ["x", "x"]}, "new": {"id": ["b", "c", "d"], "source": ["x", "y", "y"]}}
    for name, table in tables.items():
        pq.write_table(pa.table(table), tmp_path / name, row_group_size=2)
    lines, changed = compare("pairs", pq.ParquetFile(tmp_path / "old"), pq.ParquetFile(tmp_path / "new"))
    assert lines[0] == "pairs: 2 -> 3 rows, 2 added, 1 removed"
    assert "fewer than 500 rows" in lines[1]
    assert changed == []
