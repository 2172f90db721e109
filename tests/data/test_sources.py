"""Sources and formats: the same rows whatever file and format they come in; what is optional stays on them."""

import csv
import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.data import Prepare, Source
from pipelines.data import rows as rows_file
from pipelines.data import streams
from pipelines.data.columnar import read_parquet
from pipelines.data.formats import Row, reader, recognise
from pipelines.data.problems import BadRow, Ledger
from pipelines.data.rows import Ingested, ingest
from pipelines.data.schemas import LABELS
from pipelines.data.tables import read_blocks, read_table, write_stream
from pipelines.data.vetting import vet
from pipelines.errors import DataError, EnvironmentFault
from tests.data.helpers import rows_of

ROWS = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(30)]
DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: who?\n\nAssistant:"


def _rows(record: dict[str, Any], **settings: Any) -> tuple[list[Row], int, str]:
    source = Source(path="x.jsonl", **settings)
    kind = recognise([record], source, "x.jsonl:1")
    return (*reader(kind, source, "mine")(record), kind)


def _one(record: dict[str, Any], **settings: Any) -> Row:
    rows, ties, _ = _rows(record, **settings)
    assert (len(rows), ties) == (1, 0)
    return rows[0]


def _ingest(root: Path, sources: dict[str, Source], **settings: Any) -> Any:
    prepare = Prepare().model_copy(update={"sources": sources, **settings})
    found = ingest(prepare, root, root / "scratch", 1)
    return found, vet(found, prepare, root, "test")


def _prompts(found: Ingested) -> list[str]:
    return [prompt for (prompt,) in rows_of(found, "prompt")]


def _of(number: int) -> dict[str, Any]:
    """What a row may bring beside its texts."""
    return {"annotator": f"e{number % 3}", "weight": 0.5, "template": f"t{number % 2}"}


def _shown(found: Ingested) -> pd.DataFrame:
    return streams.whole(found, streams.candidates_of(found, streams.shown_once(found), 1))


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    with (tmp_path / "d.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    found = []
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress((tmp_path / "d.csv").read_bytes()))
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.csv", "e.csv.gz"):
        found.append(rows_of(_ingest(tmp_path, {"mine": Source(path=name)})[0], "id", "prompt", "completion", "split"))
    assert [(row[1], row[2]) for row in found[0]] == [(row["prompt"], row["completion"]) for row in ROWS]
    assert all(rows == found[0] for rows in found)
    assert {row[3] for row in found[0]} == {"train", "validation", "test"}


def test_folders_and_globs_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, rows in (("in/2.jsonl", ROWS[10:20]), ("in/1.jsonl", ROWS[:10]), ("in/deep/3.jsonl", ROWS[20:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "in" / "notes.txt").write_text("not data")
    whole = _prompts(_ingest(tmp_path, {"mine": Source(path="in")})[0])
    assert whole == [row["prompt"] for row in ROWS]
    assert _prompts(_ingest(tmp_path, {"mine": Source(path="in/*.jsonl")})[0]) == whole[:20]
    with pytest.raises(DataError, match=r"no-files in/\*\.csv: 0 files"):
        _ingest(tmp_path, {"mine": Source(path="in/*.csv")})


def test_csv_cells_with_commas_quotes_and_lines(tmp_path: Path) -> None:
    rows = [{"prompt": f'a "{n}", b\nc', "completion": "d"} for n in range(20)]
    with (tmp_path / "d.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    assert _prompts(_ingest(tmp_path, {"mine": Source(path="d.csv")})[0]) == [row["prompt"] for row in rows]


def test_formats_are_recognised() -> None:
    user, answer = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}
    assert _one({"prompt": "a", "completion": "b"})[:3] == ("demonstration", "a", "b")
    assert _one({"messages": [user, answer]})[:3] == ("demonstration", "who?", "me")
    multi = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, user]
    assert _one({"messages": [*multi, answer]})[:3] == ("demonstration", DIALOGUE, "me")
    pair = ("pair", "a", None, "b", "c")
    assert _one({"prompt": "a", "chosen": "b", "rejected": "c"})[:5] == pair
    other = {"role": "assistant", "content": "you"}
    assert _one({"chosen": [user, answer], "rejected": [user, other]})[:5] == ("pair", "who?", None, "me", "you")
    assert _one({"prompt": multi, "chosen": [answer], "rejected": [other]})[:5] == ("pair", DIALOGUE, None, "me", "you")
    assert _one({"prompt": multi, "completion": [answer]})[:3] == ("demonstration", DIALOGUE, "me")
    assert _one({"prompt": [user], "completion": "me"})[:3] == ("demonstration", "who?", "me")
    assert _one({"prompt": [user], "completion": [answer], "label": True})[:6] == ("label", "who?", "me", None, None, True)
    assert _one({"chosen": DIALOGUE + " me", "rejected": DIALOGUE + " you"})[:5] == ("pair", DIALOGUE, None, " me", " you")
    assert _one({"instruction": "a", "input": "x", "output": "b"})[:3] == ("demonstration", "a\n\nx", "b")
    assert _one({"instruction": "a", "input": "", "output": "b"})[:3] == ("demonstration", "a", "b")
    assert _one({"prompt": "a", "completion": "b", "label": False})[:6] == ("label", "a", "b", None, None, False)
    assert _one({"prompt": "a", "completion": "b", "label": "1"})[5] is True


def test_messages_that_are_no_answer_to_a_prompt_are_refused() -> None:
    user, answer = {"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}
    with pytest.raises(BadRow, match="completion ends with an answer of role assistant, to a prompt"):
        _rows({"prompt": [user, answer], "completion": [user]})
    with pytest.raises(BadRow, match="role 'user' where assistant is due"):
        _rows({"prompt": [user], "completion": [user, answer]})
    with pytest.raises(BadRow, match="prompt ends with role 'assistant', user is due"):
        _rows({"prompt": [user, answer], "completion": "me"})
    with pytest.raises(BadRow, match="do not share their prompt"):
        _rows({"chosen": [user, answer], "rejected": [user | {"content": "what?"}, answer]})


def test_a_first_row_that_lacks_a_field_is_a_bad_row_and_no_other_format(tmp_path: Path) -> None:
    """Labels whose first one is missing are labels, not demonstrations; pairs without their first rejected answer are pairs."""
    rows = [{"prompt": f"Q{n}", "completion": f"a{n}", "label": True} for n in range(30)]
    del rows[0]["label"]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sources = {"labels": Source(path="labels.jsonl")}
    with pytest.raises(DataError, match=r"labels.jsonl:1 .*\[label\] label: expected true or false, got NoneType in 1 of 30"):
        _ingest(tmp_path, sources)
    found, facts = _ingest(tmp_path, sources, max_bad_fraction=0.1)
    assert (found.formats, found.rows, facts["rows"]["quarantined"]) == ({"labels": "kto"}, 29, {"wrong-type": 1})
    pairs = [{"prompt": f"Q{n}", "chosen": f"a{n}"} | ({"rejected": "b"} if n else {}) for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    with pytest.raises(DataError, match=r"^missing pairs.jsonl:1 .*\[rejected\] rejected: missing in 1 of 30 rows"):
        _ingest(tmp_path, {"pairs": Source(path="pairs.jsonl")})


def test_ranked_answers_give_every_pair_without_ties() -> None:
    rows, ties, kind = _rows({"prompt": "a", "answers": ["x", "y", "z"], "scores": [1, 3, 1]})
    assert [(row.chosen, row.rejected, row.margin) for row in rows] == [("y", "x", 2.0), ("y", "z", 2.0)]
    assert [(row.chosen_grade, row.rejected_grade) for row in rows] == [(3.0, 1.0), (3.0, 1.0)]
    assert (ties, kind) == (1, "ranked")
    rows, ties, _ = _rows({"prompt": "a", "answers": ["x", "y", "z"], "ranks": [2, 1, 3]})
    assert {row.chosen_grade for row in rows} == {None}
    assert [(row.chosen, row.rejected, row.margin) for row in rows] == [("y", "x", None), ("x", "z", None), ("y", "z", None)]
    rows, ties, _ = _rows({"prompt": "a", "answers": [{"text": "x", "score": 0.5}, {"text": "y", "score": 0.5}]})
    assert (rows, ties) == ([], 1)
    with pytest.raises(BadRow, match="scores: expected 2 numbers"):
        _rows({"prompt": "a", "answers": ["x", "y"], "scores": [1]})


def test_answers_with_words_for_grades() -> None:
    """Of four answers two are fair, a tie; the five other pairs have a winner."""
    words, grades = ["fair", "good", "fair", "bad"], {"good": 2.0, "fair": 1.0, "bad": -1.0}
    settings = {"columns": {"scores": "grades"}, "grades": grades}
    beside = {"prompt": "a", "answers": list("wxyz"), "grades": words}
    inside = {"prompt": "a", "answers": [{"text": text, "grade": word} for text, word in zip("wxyz", words, strict=True)]}
    for record in (beside, inside):
        rows, ties, _ = _rows(record, **settings)
        found = [(row.chosen, row.rejected, row.margin, row.chosen_grade) for row in rows]
        assert found == [("x", "w", 1, 2), ("w", "z", 2, 1), ("x", "y", 1, 2), ("x", "z", 3, 2), ("y", "z", 2, 1)]
        assert ties == 1
    with pytest.raises(BadRow, match="scores: 'poor' is none of good, fair, bad"):
        _rows(beside | {"grades": ["poor", *words[1:]]}, **settings)
    with pytest.raises(BadRow, match="scores: expected 4 numbers"):
        _rows(beside, columns={"scores": "grades"})


def test_graded_comparisons_with_words_for_grades_and_an_annotator() -> None:
    settings = {"columns": {"grade": "preference", "annotator": "evaluator"}, "grades": {"a": 2.0, "tie": 0.0, "b": -1.0}}
    record = {"prompt": "p", "first": "x", "second": "y", "evaluator": "e03"}
    row = _one(record | {"preference": "b"}, **settings)
    assert (row.chosen, row.rejected, row.margin, row.annotator) == ("y", "x", 1.0, "e03")
    assert _rows(record | {"preference": "tie"}, **settings)[:2] == ([], 1)
    with pytest.raises(BadRow, match="'c' is none of a, tie, b"):
        _rows(record | {"preference": "c"}, **settings)
    source = Source(path="x.jsonl", **settings)
    with pytest.raises(BadRow, match="grade: missing"):  # not a tie: nobody has judged
        reader("graded", source, "mine")(record | {"preference": None})


def test_columns_are_mapped_and_optional_ones_stay() -> None:
    record = {"task": {"q": "a"}, "texts": ["x", "b"], "who": 7, "m": "0.5", "w": 2, "from": "web", "set": "rte"}
    columns = {
        "prompt": "task.q",
        "completion": "texts.1",
        "group": "who",
        "margin": "m",
        "weight": "w",
        "source": "from",
        "dataset": "set",
    }
    row = _one(record, columns=columns, category="nli")
    assert row == Row(
        "demonstration", "a", "b", group="7", margin=0.5, weight=2.0, source="web", task="nli/rte", template=None
    )  # fmt: skip
    with pytest.raises(BadRow, match="weight: expected a number above 0"):
        _one(record | {"w": 0}, columns=columns)
    assert _one({"prompt": "a", "completion": "b"}).task == "mine"


def test_pairs_and_labels_keep_who_said_so_how_much_it_weighs_and_in_which_template(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Q{n}", "chosen": f"a{n}", "rejected": "b"} | _of(n) for n in range(20)]
    labels = [{"prompt": f"L{n}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(20)]
    labels[4:] = [row | _of(n) for n, row in enumerate(labels[4:], start=4)]
    for name, rows in (("pairs", pairs), ("labels", labels)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found, facts = _ingest(tmp_path, {name: Source(path=f"{name}.jsonl") for name in ("pairs", "labels")})
    kept = ["annotator", "weight", "template"]
    assert streams.optional_of(found, "pair") == streams.optional_of(found, "label") == kept
    pairs_table = pa.concat_tables(streams.pairs_of(found)).to_pandas()
    assert pairs_table[kept].to_dict("records") == [_of(n) for n in range(20)]
    write_stream(streams.labels_of(found), tmp_path / "labels.parquet", LABELS, kept)
    labels_table = read_table(tmp_path / "labels.parquet", LABELS)
    assert labels_table["label"].tolist() == [n % 2 == 0 for n in range(20)]
    assert labels_table[kept].isna().all(axis=1).tolist() == [n < 4 for n in range(20)]
    assert labels_table[kept][4:].to_dict("records") == [_of(n) for n in range(4, 20)]
    shown = set(_shown(found)["prompt"])
    assert {f"L{n}" for n in range(20) if n % 2 == 0} <= shown, "good answers are demonstrated"
    assert not {f"L{n}" for n in range(20) if n % 2} & shown
    assert facts["longer_wins"] == {"pairs": 20, "accuracy": 1.0}


def test_scores_of_ranked_answers_are_grades_in_the_table_of_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "answers": [f"a{n}", "b", "c"], "scores": [3, n / 10, -1]} for n in range(20)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found, _ = _ingest(tmp_path, {"mine": Source(path="mine.jsonl")})
    table = pa.concat_tables(streams.pairs_of(found)).to_pandas()
    assert streams.optional_of(found, "pair") == ["chosen_grade", "rejected_grade"]
    assert table["margin"].tolist() == (table["chosen_grade"] - table["rejected_grade"]).tolist()
    third = table[table["prompt"] == "Q3"]
    assert third[["chosen_grade", "rejected_grade"]].values.tolist() == [[3.0, 0.3], [3.0, -1.0], [0.3, -1.0]]


def test_bad_rows_up_to_the_fraction_are_put_aside_and_listed(tmp_path: Path) -> None:
    rows = [json.dumps(row) for row in ROWS]
    rows[3], rows[8] = "{broken", json.dumps({"prompt": "private words", "completion": " "})
    (tmp_path / "mine.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    sources = {"mine": Source(path="mine.jsonl")}
    with pytest.raises(DataError, match=r"in 1 of 30 rows .*\(2 of 30 rows, 0.05 allowed\)"):
        _ingest(tmp_path, sources, max_bad_fraction=0.05)
    prepare = Prepare().model_copy(update={"sources": sources, "max_bad_fraction": 0.07})
    found = ingest(prepare, tmp_path, tmp_path / "scratch", 1, tmp_path / "quarantine.jsonl")
    facts = vet(found, prepare, tmp_path, "test")
    assert found.rows == 28
    assert facts["rows"]["quarantined"] == {"empty-text": 1, "invalid-json": 1}
    listed = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [(each["code"], each["place"]) for each in listed] == [
        ("invalid-json", "mine.jsonl:4 (line 4)"),
        ("empty-text", "mine.jsonl:9 (line 9)"),
    ]
    raw = [f"{rows[number]}\n".encode() for number in (3, 8)]
    assert [each["sha256"] for each in listed] == [hashlib.sha256(line).hexdigest()[:12] for line in raw]
    assert "private" not in (tmp_path / "quarantine.jsonl").read_text()
    (tmp_path / "mine.jsonl").write_text("{a\n{b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"all-filtered test: 0 of 2 rows left: invalid-json 2"):
        _ingest(tmp_path, sources, max_bad_fraction=1.0)


def test_rows_that_are_added_move_no_other(tmp_path: Path) -> None:
    def splits(count: int) -> dict[str, str]:
        rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(count)]
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return dict(rows_of(_ingest(tmp_path, {"mine": Source(path="mine.jsonl")})[0], "prompt", "split"))

    few, many = splits(200), splits(300)
    assert few == {prompt: many[prompt] for prompt in few}
    assert set(few.values()) == {"train", "validation", "test"}


def test_prompts_that_differ_in_case_and_width_share_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"Was ist Straße {n}?", "completion": "a"} for n in range(40)]
    rows += [{"prompt": f"WAS  IST STRASSE {n}\uff1f", "completion": "b"} for n in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found, _ = _ingest(tmp_path, {"mine": Source(path="mine.jsonl")}, max_overlap=0.0)
    splits = rows_of(found, "split")
    assert splits[:40] == splits[40:]


def _words(number: int, count: int) -> str:
    return " ".join(f"w{number}x{place}" for place in range(count))


def test_near_duplicates_are_counted_and_dropped_where_asked(tmp_path: Path) -> None:
    """45 words have 41 runs of five; the last word is in one of them: 40 of 42 are in both rows, 0.95."""
    rows = [{"prompt": _words(n, 40), "completion": f"and it ends like {n}"} for n in range(30)]
    rows += [rows[n] | {"completion": f"and it ends like {other}"} for other in ("that", "this") for n in range(2)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sources = {"mine": Source(path="mine.jsonl")}
    found, facts = _ingest(tmp_path, sources)
    again = [f"mine-0000{30 + n} like mine-00000{n % 2}" for n in range(4)]
    assert facts["near_duplicates"] == {"rows": 4, "similarity": 0.8, "first": again[:3]}
    assert (found.rows, facts["rows"]["dropped"]) == (34, {})
    found, facts = _ingest(tmp_path, sources, near_duplicates="drop")
    assert _prompts(found) == [row["prompt"] for row in rows[:30]]
    assert facts["rows"]["dropped"] == {"near_duplicate": 4}


def test_training_rows_that_hold_a_test_prompt_are_dropped_where_asked(tmp_path: Path) -> None:
    """13 words have 6 runs of eight; a training row with another last word holds 5 of them, one with two other words 4."""
    words = _words(0, 13).split()
    texts = {
        "train": [" ".join([*words[:12], "else"]), " ".join([*words[:11], "else", "more"]), " ".join(words[:8]), _words(1, 20)],
        "test": [" ".join(words), _words(2, 20)],
    }
    for name, prompts in texts.items():
        lines = [json.dumps({"prompt": prompt, "completion": "a"}) + "\n" for prompt in prompts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    sources = {name: Source(path=f"{name}.jsonl", split=name) for name in texts}
    measured = {"test_prompts": 2, "at_or_over_0.5": 1, "largest_8_gram_overlap": 0.8333, "mean_8_gram_overlap": 0.4167}
    for limit, kept, dropped in (
        (0.5, [2, 3], {"overlaps_test_prompt": 2}),
        (0.8, [1, 2, 3], {"overlaps_test_prompt": 1}),
        (0.0, [0, 1, 2, 3], {}),
    ):
        found, facts = _ingest(tmp_path, sources, leaks="drop", max_overlap=limit)
        assert _prompts(found) == [texts["train"][number] for number in kept] + texts["test"]
        assert (facts["contamination"], facts["rows"]["dropped"]) == (measured, dropped)
    with pytest.raises(
        DataError, match=r"train-000000 and test row test-000000 \(2 training rows: also train.jsonl:2 \(line 2\)\)"
    ):
        _ingest(tmp_path, sources)


def test_what_a_split_hangs_on_can_be_said(tmp_path: Path) -> None:
    """Pairs of a group, all of one prompt each: by prompt groups are parted, by group prompts are."""
    rows = [{"prompt": f"Q{n % 40}", "chosen": f"a{n}", "rejected": "b", "group": f"g{n // 40}"} for n in range(400)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for by, whole, parted in (("prompt", "prompt", "group"), ("auto", "prompt", "group"), ("group", "group", "prompt")):
        prepare = Prepare().model_copy(update={"sources": {"mine": Source(path="mine.jsonl")}, "split_by": by})
        found = ingest(prepare, tmp_path, tmp_path / "scratch", 1)
        table = pd.DataFrame(rows_of(found, "prompt", "group", "split"), columns=["prompt", "group", "split"])
        assert (table.groupby(whole)["split"].nunique() == 1).all()
        assert (table.groupby(parted)["split"].nunique() > 1).any()


def test_personal_data_is_counted_and_masked(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[0]["completion"] = (
        "Write to jane.doe@example.org or +49 30 1234 5678, card 4111 1111 1111 1111, not 4111 1111 1111 1112."
    )
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sources = {"mine": Source(path="mine.jsonl")}
    found, facts = _ingest(tmp_path, sources)
    assert facts["personal_data"]["email"] == facts["personal_data"]["credit_card"] == 1
    assert _shown(found)["completion"][0].strip() == rows[0]["completion"]
    masked = _shown(_ingest(tmp_path, sources, personal_data="mask")[0])["completion"][0]
    assert "[email]" in masked
    assert "[credit_card], not 4111" in masked
    assert "jane" not in masked
    pairs = [{"prompt": f"Q{n}", "chosen": f"Ask me{n}@example.org", "rejected": "Ask no one"} for n in range(30)]
    pairs[3]["rejected"] = "Ask you@example.org"
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    assert _ingest(tmp_path, sources)[0].rows == 30
    with pytest.raises(DataError, match=r"mine.jsonl:4 .* chosen equals rejected once personal data is masked in 1 of 30 rows"):
        _ingest(tmp_path, sources, personal_data="mask")


def test_hub_data_is_read_at_its_revision_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the hub cannot be reached, and that is said; the streaming path reads a folder of the same layout."""
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    local = Source(hub="some/set", revision="0123456789").model_copy(update={"hub": str(tmp_path)})
    found, _ = _ingest(tmp_path, {"mine": local})
    assert _prompts(found) == [row["prompt"] for row in ROWS]
    with pytest.raises(DataError, match="huge-row .* a row of 22 bytes in 20 of 30 rows"):
        _ingest(tmp_path, {"mine": local}, max_row_bytes=21)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match=r"prepare\.sources\.mine: nobody/nothing@0123456789 cannot be reached"):
        _ingest(tmp_path, {"mine": Source(hub="nobody/nothing", revision="0123456789")})


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({}, "one of them"),
        ({"hub": "a/b"}, "needs revision"),
        ({"hub": "a/b", "revision": "main-branch"}, "a commit hash"),
        ({"hub": "../data", "revision": "0123456789"}, "should match pattern"),
        ({"path": "a.jsonl", "columns": {"promt": "x"}}, "'promt' is none of ours"),
        ({"path": "a.jsonl", "format": "template"}, "go together"),
        ({"path": "a.jsonl", "format": "template", "templates": "../x.yaml"}, "below data/templates/"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        Source(**settings)


def test_no_more_than_a_block_of_a_file_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB that cannot be packed, in 40 blocks of 1.6 MB: no more than some blocks at a time, however they are read."""
    texts = [os.urandom(8192).hex() for _ in range(4000)]
    columns = {each.name: pa.nulls(100, each.type) for each in rows_file.SCHEMA}
    with pq.ParquetWriter(tmp_path / "rows.parquet", rows_file.SCHEMA, compression="lz4") as writer:
        for start in range(0, 4000, 100):
            writer.write_table(pa.table(columns | {"prompt": pa.array(texts[start : start + 100])}, rows_file.SCHEMA))
    monkeypatch.setattr(rows_file, "BLOCK", 100)
    found = Ingested(tmp_path / "rows.parquet", Ledger(), np.ones(4000, bool))
    streamed = (found.blocks(["prompt"]), read_blocks(found.path, 100), read_parquet(found.path, "rows.parquet", 2**20))
    for blocks in streamed:
        before = pa.total_allocated_bytes()
        assert max(pa.total_allocated_bytes() - before for _ in blocks) < 16 * 2**20
