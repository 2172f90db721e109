"""The recipes for real data: prepared from a folder of real files (PREFLOOP_TEST_DATA), and on rows of the same shape.

The slow test reads what is brought in with ``prefloop data add``; without the folder it is skipped and says so.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.config import Params, load
from pipelines.config.data import Source
from pipelines.context import Context
from pipelines.data import schemas
from pipelines.data.tables import read_table
from pipelines.errors import DataError
from pipelines.journal import Journal
from pipelines.stages import prepare
from tests.data.helpers import leaks
from tests.stages.local import Here

ROOT = Path(__file__).parents[2]
REAL = os.environ.get("PREFLOOP_TEST_DATA", "")
SETS = {
    "hh": ("hh-rlhf-harmless-base-test", "hh"),
    "flan_mixture": ("t0-many-templates", "t0"),
    "groups": ("blend-cultures/group_pairs.jsonl.gz", "groups"),
}
needs_real_data = pytest.mark.skipif(not REAL, reason="PREFLOOP_TEST_DATA names no folder of real data")


def _prepare(root: Path, params: Params) -> tuple[dict[str, float], dict[str, pd.DataFrame], dict[str, Any]]:
    """Run the stage in ``root``; its metrics, tables and quality.json."""
    shutil.copytree(ROOT / "data" / "templates", root / "data" / "templates", dirs_exist_ok=True)
    metrics = prepare.run(Context("prepare", params, root, root / "scratch", Journal(None), Here(1)))
    out = root / "scratch" / "outs" / "artifacts" / "prepared"
    tables = {name: read_table(out / f"{name}.parquet", schema) for name, schema in prepare.TABLES.items()}
    assert leaks(tables) == 0
    return metrics, tables, json.loads((out / "quality.json").read_text())


def _with(params: Params, **settings: Any) -> Params:
    return params.model_copy(update={"prepare": params.prepare.model_copy(update=settings)})


def _real(root: Path, recipe: str) -> Params:
    path, name = SETS[recipe]
    target = root / "data" / "external" / name
    if (Path(REAL) / path).is_dir():
        shutil.copytree(Path(REAL) / path, target)
    else:
        target.mkdir(parents=True)
        shutil.copy(Path(REAL) / path, target)
    return load(ROOT / "recipes" / f"{recipe}.yaml")


@needs_real_data
@pytest.mark.slow
def test_hh_dialogues_that_answer_two_prompts_are_found_and_named(tmp_path: Path) -> None:
    params = _real(tmp_path, "hh")
    with pytest.raises(DataError) as caught:
        _prepare(tmp_path, _with(params, max_bad_fraction=0.0))
    said = str(caught.value)
    assert "chosen and rejected do not share their prompt in 5 of 2312 rows (0.216%)" in said
    assert all(f"(line {line})" in said for line in (1255, 1689, 1951, 1953, 2037))
    assert len((tmp_path / ".runs/prepare/quarantine.jsonl").read_text().splitlines()) == 9
    metrics, tables, facts = _prepare(tmp_path, params)
    assert facts["rows"]["quarantined"] == {"empty-text": 4, "prompts-differ": 5}
    assert metrics["rows/quarantined"] == 9
    assert facts["longer_wins"]["accuracy"] == pytest.approx(0.44, abs=0.02), "the folder's own notes say 0.442"
    assert tables["preferences"]["prompt"].str.endswith("\n\nAssistant:").all()
    assert len(tables["preferences"]) > 2200


@needs_real_data
@pytest.mark.slow
def test_t0_rows_are_mixed_with_their_templates(tmp_path: Path) -> None:
    metrics, tables, facts = _prepare(tmp_path, _real(tmp_path, "flan_mixture"))
    shown = tables["demonstrations"]
    train = shown[shown["split"] == "train"]
    assert shown["task"].nunique() == 11
    assert train.groupby("task")["template"].nunique().max() <= 4
    assert "Example_prompt" not in set(train["template"])
    counts = train["task"].value_counts()
    assert counts.iloc[0] < 1.2 * counts.iloc[9], "temperature 2 evens out all tasks but quoref, which lacks rows"
    assert facts["rows"]["read"] == 7014
    assert facts["rows"]["dropped"]["duplicate"] == 49
    assert facts["languages"]["en"] > 0.9
    assert metrics["rows/template_not_used"] > 0


@needs_real_data
@pytest.mark.slow
def test_groups_with_opposite_preferences_are_no_contradictions(tmp_path: Path) -> None:
    _, tables, facts = _prepare(tmp_path, _real(tmp_path, "groups"))
    pairs = tables["preferences"]
    assert pairs["group"].nunique() == 16
    assert len(pairs) + sum(facts["rows"]["dropped"].values()) == 5387
    assert facts["rows"]["quarantined"] == {}


@needs_real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "settings", "check"),
    [
        (
            "self-instruct-human/seed_tasks.jsonl.gz",
            {"columns": {"input": "instances.0.input", "output": "instances.0.output"}},
            lambda tables, facts: facts["rows"]["read"] == 175,
        ),
        (
            "tulu1-human-eval/annotations.jsonl.gz",
            {
                "columns": {"first": "completion_a", "second": "completion_b", "grade": "preference", "annotator": "evaluator"},
                "grades": {
                    "a-is-better": 2.0,
                    "a-is-slightly-better": 1.0,
                    "tie": 0.0,
                    "b-is-slightly-better": -1.0,
                    "b-is-better": -2.0,
                },
            },
            lambda tables, facts: (
                facts["rows"]["dropped"]["ties"] == 376
                and tables["preferences"]["annotator"].nunique() >= 15
                and set(tables["preferences"]["margin"]) == {1.0, 2.0}
            ),
        ),
        (
            "hhh-alignment/hhh.jsonl.gz",
            {"columns": {"group": "subset"}},
            lambda tables, facts: set(tables["preferences"]["group"]) == {"harmless", "helpful", "honest", "other"},
        ),
    ],
    ids=["human tasks", "graded with ties", "hhh"],
)
def test_other_real_files_are_prepared(tmp_path: Path, path: str, settings: dict[str, Any], check: Callable[..., bool]) -> None:
    (tmp_path / "data" / "external").mkdir(parents=True)
    shutil.copy(Path(REAL) / path, tmp_path / "data" / "external")
    source = Source(path=f"data/external/{Path(path).name}", **settings)
    params = _with(
        load(ROOT / "recipes" / "hh.yaml"), sources={"mine": source}, learns_from="data/external", max_bad_fraction=0.01
    )
    _, tables, facts = _prepare(tmp_path, params)
    assert check(tables, facts)


WORDS = [
    "the",
    "film",
    "has",
    "a",
    "slow",
    "start",
    "and",
    "yet",
    "its",
    "end",
    "made",
    "me",
    "weep",
    "for",
    "joy",
    "so",
    "see",
    "it",
    "with",
    "your",
    "friends",
    "tonight",
]


def _text(number: int, words: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=words))


SHAPES: dict[str, list[dict[str, Any]]] = {
    "imdb": [{"text": f"{number} {_text(number, 60)}.", "label": number % 2} for number in range(400)],
    "tldr": [
        {
            "prompt": f"SUBREDDIT: r/{number % 9}\n\nTITLE: {number}\n\nPOST: {_text(number, 8)}\n\nTL;DR:",
            "completion": f" {_text(number + 1, 9)}",
        }
        for number in range(400)
    ],
    "hh": [
        {
            "chosen": f"\n\nHuman: {number} {_text(number, 9)}?\n\nAssistant: {_text(number + 1, 6)}",
            "rejected": f"\n\nHuman: {number} {_text(number, 9)}?\n\nAssistant: {_text(number + 2, 7)} no",
        }
        for number in range(400)
    ],
    "flan_mixture": [
        {
            "dataset": f"set{number % 3}",
            "template": f"template{number // 3 % 6}",
            "prompt": f"{number} {_text(number, 12)}",
            "completion": _text(number, 5),
        }
        for number in range(400)
    ],
    "groups": [
        {
            "group": f"place {number % 4}",
            "prompt": f"{number // 4} {_text(number // 4, 8)}?",
            "chosen": WORDS[number % 20],
            "rejected": "no",
        }
        for number in range(400)
    ],
}


def shaped(root: Path, recipe: str) -> Params:
    """The recipe with local rows of its data's shape, fewer of them drawn."""
    params = load(ROOT / "recipes" / f"{recipe}.yaml")
    folder = root / "data" / "external" / "shape"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SHAPES[recipe]), encoding="utf-8")
    name, source = next(iter(params.prepare.sources.items()))
    local = source.model_copy(update={"path": "data/external/shape", "hub": "", "revision": "", "subset": ""})
    counts = {"demonstrations": 96, "train_prompts": 32, "validation_prompts": 16, "test_prompts": 16}
    return _with(params, sources={name: local}, learns_from="data/external/shape", **counts)


@pytest.mark.parametrize("recipe", SHAPES)
def test_every_recipe_prepares_rows_of_its_shape(tmp_path: Path, recipe: str) -> None:
    _, tables, facts = _prepare(tmp_path, shaped(tmp_path, recipe))
    assert len(tables["demonstrations"]) >= 64
    assert set(tables["prompts"]["split"]) == {"train", "validation", "test"}
    assert (len(tables["preferences"]) > 0) == (recipe in ("hh", "groups"))
    assert facts["rows"]["read"] == 400
    if recipe == "imdb":
        words = tables["prompts"]["prompt"].str.split().str.len()
        assert words.between(2, 8).all()
        assert words.nunique() >= 5
    if recipe == "groups":
        pairs = tables["preferences"]
        assert set(pairs["group"]) == {f"place {number}" for number in range(4)}
        assert set(pairs["template"]) == {"plain", "short"}
        questions = pairs["prompt_id"].map(dict(zip(pairs["prompt_id"], pairs["split"], strict=True)))
        assert (pairs["split"] == questions).all(), "all phrasings and groups of a question share a split"
    schemas.PROMPTS.validate(tables["prompts"])
