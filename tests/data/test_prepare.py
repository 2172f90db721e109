"""The stage prepare on the real plays and on people's files: counts, splits, bytes, refusals."""

import gc
import hashlib
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.adapters.cluster import connect
from pipelines.config import Params, load
from pipelines.config.data import Source
from pipelines.context import Context
from pipelines.data import near, spill, streams, tables
from pipelines.data import rows as rows_file
from pipelines.data.quality import QUANTILES, _quantiles, languages, quality
from pipelines.data.rows import ingest
from pipelines.data.schemas import PAIRS, PHRASINGS, empty
from pipelines.data.tables import read_table, write_table
from pipelines.data.vetting import measured
from pipelines.errors import DataError
from pipelines.stages import prepare
from tests.data.helpers import leaks

TEXTS = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\x1c\x85\xa0\u2003")), max_size=4)
TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


def _params(seed: int = 1, **section: object) -> Params:
    params = load(TINY)
    return params.model_copy(update={"seed": seed, "prepare": params.prepare.model_copy(update=section)})


def _run(root: Path, params: Params) -> tuple[dict[str, float], dict[str, pd.DataFrame], Path]:
    scratch = root / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    with connect(params.runtime, scratch / "journal") as cluster:
        from pipelines.journal import Journal

        ctx = Context("prepare", params, root, scratch, Journal(None), cluster)
        metrics = prepare.run(ctx)
    out = scratch / "outs" / "artifacts" / "prepared"
    return metrics, {name: read_table(out / f"{name}.parquet", schema) for name, schema in prepare.TABLES.items()}, out


def _hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, pd.DataFrame], Path]:
    return _run(tmp_path_factory.mktemp("plays"), _params())


def test_the_tables_have_the_rows_that_were_asked_for(plays: tuple) -> None:
    metrics, tables, out = plays
    counts = {name: rows["split"].value_counts().to_dict() for name, rows in tables.items()}
    asked = _params().prepare
    held_out = {"validation": asked.validation_prompts, "test": asked.test_prompts}
    assert counts["prompts"] == {"train": asked.train_prompts, **held_out}
    assert counts["demonstrations"] == {"train": asked.demonstrations, **held_out}
    assert counts["corpus"] == {"train": 30, "test": 5, "validation": 3}
    assert {name: metrics[name] for name in tables if name != "labels"} == {
        name: float(len(rows)) for name, rows in tables.items() if name != "labels"
    }
    assert len(tables["labels"]) == 0
    assert (out / "quarantine.jsonl").read_text() == ""
    facts = json.loads((out / "quality.json").read_text())
    assert facts["prompts_in_two_splits"] == 0
    assert {name: table["empty"] for name, table in facts["tables"].items()} == dict.fromkeys(set(tables) - {"labels"}, 0)


def test_the_quality_of_speeches_is_told_like_that_of_files(plays: tuple, tmp_path: Path) -> None:
    """Four speeches by hand: two nearly the same, one with an address, a test prompt inside a training prompt."""
    facts = json.loads((plays[2] / "quality.json").read_text())
    assert facts["languages"]["en"] > 0.9
    assert facts["contamination"]["test_prompts"] > 100
    assert facts["contamination"]["at_or_over_0.5"] == plays[0]["quality/contamination/at_or_over_0.5"] == 0
    long, words = " ".join(f"w{number}" for number in range(60)), "a b c d e f g h i j"
    rows = [("1", "train", words, long), ("2", "train", words, f"{long} more"), ("3", "train", "Write", " to a@example.org"),
            ("4", "test", words, " other")]  # fmt: skip
    found = measured(pd.DataFrame(rows, columns=["id", "split", "prompt", "reference"]), _params().prepare, tmp_path)
    assert found["near_duplicates"] == {"rows": 1, "similarity": 0.8, "first": ["2 like 1"]}
    assert found["personal_data"] == {"email": 1}
    assert found["contamination"]["largest_8_gram_overlap"] == 1.0
    assert found["contamination"]["test_prompts"] == found["contamination"]["at_or_over_0.5"] == 1


def test_no_play_and_no_prompt_is_in_two_splits(plays: tuple) -> None:
    _, tables, _ = plays
    rows = pd.concat([tables[name][["group", "split"]] for name in ("corpus", "demonstrations", "prompts")])
    assert (rows.groupby("group")["split"].nunique() == 1).all()
    assert leaks(tables) == 0
    assert not set(tables["prompts"]["id"]) & set(tables["demonstrations"]["id"])


def test_demonstrations_end_at_a_clause_and_prompts_have_their_words(plays: tuple) -> None:
    _, tables, _ = plays
    answers = tables["demonstrations"]["completion"]
    assert answers.str.match(r"(?s)^ \S.*([.,;:!?—][\"')]*|--)$").all()
    assert answers.str.split().map(len).between(8, 16).all()
    marks = {"colon": ": ", "heading": "**\n", "says": " says: ", "stop": ".\n"}
    for row in tables["prompts"].itertuples():
        assert len(row.prompt.partition(marks[row.template])[2].split()) == 8


def test_the_first_test_prompts_are_asked_for_in_every_phrasing(plays: tuple) -> None:
    """Eight speeches in four phrasings; the one that was drawn is among them, word for word."""
    _, tables, out = plays
    found = read_table(out / "phrasings.parquet", PHRASINGS)
    held_out = tables["prompts"][tables["prompts"]["split"] == "test"].head(8)
    assert found["intent"].drop_duplicates().tolist() == held_out["id"].tolist()
    assert found.groupby("intent")["template"].apply(list).tolist() == [["colon", "heading", "says", "stop"]] * 8
    by_name = found.set_index(["intent", "template"])["prompt"]
    for row in held_out.itertuples():
        assert by_name[row.id, row.template] == row.prompt
    assert found["prompt"].is_unique


def test_equal_inputs_give_equal_bytes_and_another_seed_another_draw_of_the_same_splits(plays: tuple, tmp_path: Path) -> None:
    _, tables, out = plays
    assert _hashes(_run(tmp_path / "again", _params())[2]) == _hashes(out)
    _, others, other = _run(tmp_path / "other", _params(seed=2))
    assert _hashes(other)["corpus.parquet"] == _hashes(out)["corpus.parquet"]
    assert set(others["prompts"]["prompt"]) != set(tables["prompts"]["prompt"])


def test_demonstrations_of_ones_own(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {number}?", "completion": f"Answer {number}."} for number in range(100)]
    _jsonl(tmp_path / "data/external/mine.jsonl", [*rows, rows[0]])
    params = _params(source="jsonl", learns_from="data/external/mine.jsonl")
    with pytest.raises(DataError, match=r"data/external/mine\.jsonl:101 .* duplicate rows: 1 of 101 rows"):
        _run(tmp_path, params)
    params = _params(source="jsonl", learns_from="data/external/mine.jsonl", duplicates="drop")
    _, tables, out = _run(tmp_path, params)
    shown = tables["demonstrations"]
    assert sorted(shown["prompt"] + shown["completion"]) == sorted(f"{row['prompt']} {row['completion']}" for row in rows)
    assert leaks(tables) == 0
    assert tables["prompts"]["prompt"].is_unique
    assert json.loads((out / "quality.json").read_text())["rows"]["dropped"] == {"duplicate": 1}


def test_preferences_of_ones_own_are_pairs_and_their_chosen_answers_are_shown(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}?", "chosen": f" yes {n}", "rejected": " no", "group": "anna"} for n in range(100)]
    _jsonl(tmp_path / "mine.jsonl", rows)
    _, tables, _ = _run(tmp_path, _params(source="jsonl", learns_from="mine.jsonl"))
    pairs = tables["preferences"]
    assert pairs[["prompt", "chosen", "rejected", "group"]].to_dict("records") == rows
    assert set(pairs["judge"]) == {"people"}
    assert pairs["margin"].isna().all()
    assert set(tables["demonstrations"]["completion"]) == {row["chosen"] for row in rows}
    assert leaks(tables) == 0


def test_the_pool_keeps_the_split_of_prompts_that_are_known(plays: tuple, tmp_path: Path) -> None:
    """Also of those that differ in case or white space only."""
    asked = plays[1]["prompts"]
    held_out = asked[asked["split"] == "test"].head(20)
    prompts = [prompt.upper() + " " if number % 2 else prompt for number, prompt in enumerate(held_out["prompt"])]
    others = [f"{prompt} and more {number}" for number, prompt in enumerate(held_out["prompt"])]
    rows = [{"prompt": prompt, "chosen": " a", "rejected": " b"} for prompt in prompts + others]
    _jsonl(tmp_path / "data/preferences/friends.jsonl", rows)
    metrics, tables, out = _run(tmp_path, _params())
    pairs = tables["preferences"]
    assert pairs["prompt"].tolist() == prompts + others
    assert pairs["prompt_id"].tolist()[:20] == held_out["id"].tolist()
    assert set(pairs["split"][:20]) == {"test"}
    trained = int((pairs["split"][20:] == "train").sum())
    measured = json.loads((out / "quality.json").read_text())["pool_contamination"]
    assert measured["at_or_over_0.5"] == metrics["quality/pool_contamination/at_or_over_0.5"] == trained > 10
    assert (measured["test_prompts"], measured["largest_8_gram_overlap"]) == (_params().prepare.test_prompts, 1.0)
    assert set(pairs["source"]) == {"friends"}
    assert set(pairs["group"]) == {"all"}
    assert leaks(tables) == 0


def test_what_the_loop_has_collected_is_part_of_the_pool(plays: tuple, tmp_path: Path) -> None:
    """A cut answer stays cut, its judge stays named; a known prompt keeps its split, another the one it was asked in."""
    asked = plays[1]["prompts"].iloc[0]
    shared = {"group": "lear", "judge": "lexicon", "margin": float("nan"), "source": "round-001", "rejected_ended": True}
    rows = [
        {"id": "round-001-0", "prompt_id": "x", "prompt": asked["prompt"], "chosen": "", "rejected": " b", "split": "test"},
        {"id": "round-001-1", "prompt_id": "y", "prompt": "Something new", "chosen": " a", "rejected": " b", "split": "test"},
    ]
    table = pd.DataFrame([{**row, **shared, "chosen_ended": False} for row in rows])[list(empty(PAIRS))]
    write_table(table, tmp_path / "data/preferences/round-001.parquet", PAIRS)
    _jsonl(
        tmp_path / "data/preferences/friends.jsonl", [{"prompt": "New", "chosen": " c", "rejected": " d", "annotator": "anna"}]
    )
    _, tables, out = _run(tmp_path, _params())
    pairs = tables["preferences"]
    assert pairs["source"].tolist() == ["friends", "round-001", "round-001"]
    assert pairs["judge"].tolist() == ["people", "lexicon", "lexicon"]
    assert pairs["chosen_ended"].tolist() == [True, False, False]
    assert pairs["prompt_id"].tolist()[1:] == [asked["id"], "y"]
    assert pairs["split"].tolist()[1:] == [asked["split"], "test"]
    assert json.loads((out / "quality.json").read_text())["pool"]["round-001"] == {"read": 2}


def test_a_group_is_in_one_split_and_a_prompt_of_two_groups_stays_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n % 90}", "completion": f"A{n}", "group": f"book {n % 40}"} for n in range(360)]
    _jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError, match="prompt appears in train and"):
        _run(tmp_path, _params(source="jsonl", learns_from="mine.jsonl"))
    _, tables, out = _run(tmp_path, _params(source="jsonl", learns_from="mine.jsonl", leaks="drop"))
    assert leaks(tables) == 0
    assert (tables["demonstrations"].groupby("group")["split"].nunique() == 1).all()
    assert json.loads((out / "quality.json").read_text())["rows"]["dropped"]["prompt_in_two_splits"] > 0


def test_refusals_name_the_file(tmp_path: Path) -> None:
    _jsonl(tmp_path / "few.jsonl", [{"prompt": f"Q{n}", "completion": "A"} for n in range(3)])
    with pytest.raises(DataError, match=r"few-rows few\.jsonl: 3 rows, need >= 20"):
        _run(tmp_path, _params(source="jsonl", learns_from="few.jsonl"))
    _jsonl(tmp_path / "fixed.jsonl", [{"prompt": f"Q{n}", "completion": "A"} for n in range(30)])
    sources = {"fixed": Source(path="fixed.jsonl", split="train")}
    with pytest.raises(DataError, match=r"fixed\.jsonl: 0 rows in split validation for the prompts \(30 in all splits\)"):
        _run(tmp_path, _params(source="files", learns_from="fixed.jsonl", sources=sources))
    _jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match=r"empty\.jsonl: 0 rows"):
        _run(tmp_path, _params(source="jsonl", learns_from="empty.jsonl"))
    _jsonl(tmp_path / "data/preferences/bad.jsonl", [{"prompt": "Q", "chosen": "A"}])
    with pytest.raises(DataError, match=r"data/preferences/bad\.jsonl:1 .* missing: rejected"):
        _run(tmp_path, _params())


def test_bad_rows_are_put_aside_within_the_limit_and_listed_beyond_it(tmp_path: Path) -> None:
    rows: list[dict] = [{"prompt": f"Question {number}?", "completion": f"Answer {number}."} for number in range(100)]
    rows[41]["completion"] = " "
    _jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(DataError, match=r"empty-text mine\.jsonl:42 .* in 1 of 100 rows .*\.runs/prepare/quarantine\.jsonl"):
        _run(tmp_path, _params(source="jsonl", learns_from="mine.jsonl"))
    left = (tmp_path / ".runs" / "prepare" / "quarantine.jsonl").read_text()
    metrics, tables, out = _run(tmp_path, _params(source="jsonl", learns_from="mine.jsonl", max_bad_fraction=0.01))
    assert (out / "quarantine.jsonl").read_text() == left
    assert json.loads(left)["place"] == "mine.jsonl:42 (line 42)"
    assert (metrics["rows/read"], metrics["rows/quarantined"], len(tables["demonstrations"])) == (100.0, 1.0, 99)
    assert metrics["quarantined/empty-text"] == 1.0
    assert metrics["quality/longer_wins/pairs"] == 0.0


def test_quality_by_hand(tmp_path: Path) -> None:
    pairs = pd.DataFrame(
        {
            "prompt": ["a", "a", "b"],
            "chosen": ["x", "y y", "x"],
            "rejected": ["y y", "x", " "],
            "group": ["g", "g", "h"],
            "source": ["s", "s", "s"],
            "split": ["train", "test", "train"],
        }
    )
    facts = quality({"preferences": [pairs[:1], pairs[1:]]}, {"rule": 0}, tmp_path)
    table = facts["tables"]["preferences"]
    assert facts["prompts_in_two_splits"] == 1
    assert (table["rows"], table["groups"], table["duplicates"], table["empty"], table["contradictions"]) == (3, 2, 0, 1, 1)
    assert table["words"]["chosen"] == {"q00": 1.0, "q10": 1.0, "q50": 1.0, "q90": 1.8, "q100": 2.0}
    assert table["per_split"] == {"test": 1, "train": 2}
    assert table["per_source"] == {"s": 3}


@given(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=40))
@settings(max_examples=200)
def test_quantiles_of_counted_numbers_are_those_of_numpy(numbers: list[int]) -> None:
    expected = {f"q{round(100 * q):02d}": round(float(np.quantile(numbers, q)), 1) for q in QUANTILES}
    assert _quantiles(Counter(numbers)) == expected


def test_the_mix_of_languages_by_hand() -> None:
    """Three sentences of four are English; a language of fewer than one text in a hundred is counted as another."""
    english = ["The king is walking through the garden of his castle", "She gave the letter to her brother", "Who goes there?"]
    texts = pd.DataFrame({"prompt": [*english, "Der König geht durch den Garten seines Schlosses"], "completion": " "})
    assert languages(texts) == {"de": 0.25, "en": 0.75}
    many = pd.concat([texts[:1]] * 199 + [texts[3:]])
    assert languages(many) == {"en": 0.995, "other": 0.005}


def _every_kind(root: Path) -> dict[str, Source]:
    """Demonstrations, pairs of several groups and annotators, single labels, with some rows twice and some texts spaced."""
    demonstrations = [{"prompt": f"Ask {n}:", "completion": f"{' ' * (n % 2)}Tell {n % 50}."} for n in range(120)]
    pairs = [
        {"prompt": f"Which {n % 60}?{' ' * (n % 3 == 0)}", "chosen": f"this {n}", "rejected": "that", "group": f"g{n % 3}"}
        | ({"annotator": "eva", "margin": 0.5} if n % 4 == 0 else {})
        for n in range(150)
    ]
    labels = [{"prompt": f"Judge {n}!", "completion": f"so {n}", "label": n % 2 == 0} for n in range(40)]
    for name, rows in (("shown", demonstrations + demonstrations[:9]), ("pairs", pairs), ("labels", labels)):
        _jsonl(root / f"data/external/{name}.jsonl", rows)
    return {name: Source(path=f"data/external/{name}.jsonl") for name in ("shown", "pairs", "labels")}


def test_tables_in_a_stream_do_not_hang_on_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle of the rows: pandas, from the files themselves."""
    found = []
    for name, block in (("whole", rows_file.BLOCK), ("blocks", 7)):
        monkeypatch.setattr(rows_file, "BLOCK", block)
        sources = _every_kind(tmp_path / name)
        params = _params(source="files", learns_from="data/external", sources=sources, duplicates="drop", max_overlap=0.0)
        found.append(_run(tmp_path / name, params))
    assert _hashes(found[0][2]) == _hashes(found[1][2])
    assert found[0][0] == found[1][0]

    _, written, _ = found[1]
    read = {
        name: pd.read_json(tmp_path / f"whole/data/external/{name}.jsonl", lines=True) for name in ("shown", "pairs", "labels")
    }
    pairs, labels = written["preferences"], written["labels"]
    assert pairs["prompt"].tolist() == read["pairs"]["prompt"].tolist()
    spaced = [text if prompt.endswith(" ") else f" {text}" for prompt, text in read["pairs"][["prompt", "chosen"]].values]
    assert pairs["chosen"].tolist() == spaced
    assert pairs["annotator"].fillna("").tolist() == read["pairs"]["annotator"].fillna("").tolist()
    assert pairs["margin"].fillna(0).tolist() == read["pairs"]["margin"].fillna(0).tolist()
    assert "weight" not in pairs
    assert labels["label"].tolist() == read["labels"]["label"].tolist()
    good = read["labels"][read["labels"]["label"]]
    answers = [(read["shown"][:120], "completion"), (read["pairs"], "chosen"), (good, "completion")]
    texts = {
        f"{prompt} {answer}".replace("  ", " ") for frame, name in answers for prompt, answer in frame[["prompt", name]].values
    }
    assert set(written["corpus"]["text"].str.replace("  ", " ")) == texts
    assert len(written["corpus"]) == len(texts)
    demonstrations = written["demonstrations"]
    assert set((demonstrations["prompt"] + demonstrations["completion"]).str.replace("  ", " ")) <= texts


def _few(**section: object) -> Params:
    counts = {"demonstrations": 8, "train_prompts": 6, "validation_prompts": 2, "test_prompts": 2}
    return _params(source="files", learns_from="data/external", max_overlap=0.0, duplicates="drop", **counts, **section)


def test_the_draw_of_a_long_file_is_that_of_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all rows are candidates, once those that come early; a prompt of the pool that comes late keeps its split."""
    monkeypatch.setattr(streams, "FEWEST", 8)
    monkeypatch.setattr(prepare, "SAMPLE", 10)
    found = []
    for name, longest in (("all", streams.WHOLE_DRAW), ("early", 100)):
        monkeypatch.setattr(streams, "WHOLE_DRAW", longest)
        sources = _every_kind(tmp_path / name)
        pool = [{"prompt": f"Ask {n}:", "chosen": "a", "rejected": "b"} for n in range(0, 120, 5)]
        _jsonl(tmp_path / name / "data/preferences/friends.jsonl", pool)
        found.append(_run(tmp_path / name, _few(sources=sources)))
    assert _hashes(found[0][2]) == _hashes(found[1][2])


@pytest.mark.parametrize(("alone", "every"), [(400, False), (9, True)])
def test_candidates_that_come_too_late_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: int, every: bool
) -> None:
    """Of 400 prompts those that come early; where 391 rows share one prompt, every row is needed to find ten."""
    monkeypatch.setattr(streams, "WHOLE_DRAW", 100)
    monkeypatch.setattr(streams, "FEWEST", 8)
    _jsonl(tmp_path / "mine.jsonl", [{"prompt": f"Ask {min(n, alone)}", "completion": f"Tell {n}"} for n in range(400)])
    asked = _few(sources={"mine": Source(path="mine.jsonl", split="train")}).prepare
    found = ingest(asked, tmp_path, tmp_path / "scratch", 1)
    used = streams.shown_once(found)
    candidates = streams.candidates_of(found, used, 1, {"train": 10})
    assert used.all()
    whole = streams.candidates_of(found, used, 1).sort_values("order")
    assert (len(candidates) == 400) == every
    assert candidates.sort_values("order")["number"].tolist() == whole["number"].tolist()[: len(candidates)]
    assert len(candidates) > 40


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of all rows, from the file of rows to quality.json: a block, a part, and less than 40 bytes a row more,
    where the texts of a row are 270; two keys and a copy of them would be 32. Python's and NumPy's memory, at its peak."""
    small = [(rows_file, "BLOCK", 200), (tables, "GROUP", 200), (near, "CHUNK", 50), (spill, "FLUSH", 2000)]
    few = [(streams, "WHOLE_DRAW", 100), (streams, "FEWEST", 8), (prepare, "SAMPLE", 10)]
    for module, name, value in [*small, *few]:
        monkeypatch.setattr(module, name, value)

    def params(root: Path, count: int) -> Params:
        texts = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(count)]
        pairs = [{"prompt": f"{n} {text}", "chosen": f"{text} {n}", "rejected": text} for n, text in enumerate(texts)]
        _jsonl(root / "data/external/mine.jsonl", pairs)
        return _few(sources={"mine": Source(path="data/external/mine.jsonl")})

    def read(*arguments: Any) -> Any:
        found = ingest(*arguments)
        gc.collect()  # Python keeps some thousand tuples for later
        tracemalloc.start()
        return found

    _run(tmp_path / "first", params(tmp_path / "first", 100))  # loads what is loaded once
    monkeypatch.setattr(prepare, "ingest", read)
    peaks = []
    for count in (300, 2100):
        root = tmp_path / str(count)
        try:
            assert _run(root, params(root, count))[0]["preferences"] == count
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 1800 < 40


@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
@settings(max_examples=200)
def test_an_answer_is_parted_from_its_prompt_by_white_space_of_either(texts: list[tuple[str, str]]) -> None:
    prompts, answers = (pa.array(column, pa.string()) for column in zip(*texts, strict=True))
    expected = [answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}" for prompt, answer in texts]
    assert streams._joined(prompts, answers).to_pylist() == expected
