"""The preferences stage on a small model: tables, determinism whatever the shards, gold apart, sources, empty results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.config import Params
from pipelines.context import Context
from pipelines.data.schemas import GOLD, PAIRS, PROMPTS
from pipelines.data.tables import read_table, write_table
from pipelines.errors import DataError
from pipelines.journal import Journal
from pipelines.judges import callables
from pipelines.stages import preferences
from tests import small
from tests.judges import models
from tests.judges.server import Server, serving, vowels
from tests.stages.local import Here
from tests.training import helpers

BASE: dict[str, Any] = {
    "answers": 3,
    "pairing": "all",
    "bradley_terry_temperature": 1e-6,
    "min_margin": 0.0,
    "precision": "float32",
    "judge": {"kind": "callable", "callable": "tongue:vowels"},
    "generation": {"max_new_tokens": 6, "batch_size": 4},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project after the stages prepare and sft, with a judge that counts vowels."""
    (tmp_path / "tongue.py").write_text(
        "def vowels(prompts, answers): return [float(sum(a.count(v) for v in 'aeiou')) for a in answers]\n"
        "def flat(prompts, answers): return [0.0] * len(answers)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(callables, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    small.model_folder(tmp_path / "artifacts" / "sft" / "model")
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2
    rows = [
        {
            "id": f"q{n}",
            "prompt": f"LEAR: word {'so ' * (n % 3)}{n}",
            "reference": " end.",
            "template": "plain",
            "source": "test",
            "group": "lear",
            "split": split,
        }
        for n, split in enumerate(splits)
    ]
    write_table(pd.DataFrame(rows), tmp_path / "artifacts" / "prepared" / "prompts.parquet", PROMPTS)
    people = read_table(helpers.pairs(tmp_path, (2, 1, 1)), PAIRS).assign(judge="people", source="pool")
    write_table(people, tmp_path / "artifacts" / "prepared" / "preferences.parquet", PAIRS)
    return tmp_path


def _run(root: Path, shards: int = 1, name: str = "run", **some: Any) -> tuple[Path, dict[str, float]]:
    params = Params.model_validate(
        {
            "prepare": {},
            "base": {},
            "sft": {},
            "preferences": BASE | some,
            "reward": {},
            "policies": {},
            "evaluate": {},
            "report": {},
        }
    )
    scratch = root / name
    scratch.mkdir()
    ctx = Context("preferences", params, root, scratch, Journal(None), Here(shards))
    figures = preferences.run(ctx)
    return scratch / "outs" / "artifacts" / "preferences", figures


def test_pairs_are_in_the_order_of_the_gold_that_lies_apart(root: Path) -> None:
    out, figures = _run(root)
    pairs, gold = read_table(out / "pairs.parquet", PAIRS), read_table(out / "gold.parquet", GOLD)
    assert len(gold) == figures["answers"] == 30
    assert gold["answer_index"].tolist() == [0, 1, 2] * 10
    true = dict(zip(zip(gold["prompt_id"], gold["answer"], strict=True), gold["gold"], strict=True))
    for pair in pairs.itertuples():
        assert true[pair.prompt_id, pair.chosen] > true[pair.prompt_id, pair.rejected]
    assert figures["label_agreement"] == 1.0
    assert pairs["margin"].isna().all()  # a margin would give the gold away to whoever trains on pairs
    assert set(pairs["split"]) == {"train", "validation", "test"}
    assert set(pairs["judge"]) == {"tongue:vowels"}
    # three answers make three comparisons; equal texts and equal scores make no pair
    assert len(pairs) == figures["pairs"]
    assert len(pairs) + figures["within_margin"] <= 30


def test_answers_do_not_depend_on_shards_or_batches(root: Path) -> None:
    out, _ = _run(root)
    again, _ = _run(root, shards=3, name="again", generation={"max_new_tokens": 6, "batch_size": 7})
    assert helpers.digests(out) == helpers.digests(again)


def test_without_a_gold_judge_there_is_no_gold_but_a_margin(root: Path) -> None:
    out, _ = _run(root, judge={"kind": "callable", "callable": "tongue:vowels", "gold": False})
    assert len(read_table(out / "gold.parquet", GOLD)) == 0
    pairs = read_table(out / "pairs.parquet", PAIRS)
    assert (pairs["chosen_grade"] - pairs["rejected_grade"]).tolist() == pairs["margin"].tolist()
    assert pairs["chosen_grade"].tolist() == [float(sum(text.count(v) for v in "aeiou")) for text in pairs["chosen"]]
    assert (read_table(out / "pairs.parquet", PAIRS)["margin"] > 0).all()


def test_peoples_pairs_alone_or_beside(root: Path) -> None:
    out, figures = _run(root, source="pool")
    assert figures == {"pairs": 4.0}
    assert read_table(out / "pairs.parquet", PAIRS)["judge"].tolist() == ["people"] * 4
    both, more = _run(root, source="both", name="both")
    table = read_table(both / "pairs.parquet", PAIRS)
    assert table["judge"].tolist().count("people") == 4
    assert len(table) == more["pairs"] > 4


def test_noise_turns_labels_round(root: Path) -> None:
    _, figures = _run(root, label_noise=1.0)
    assert figures["label_agreement"] == 0.0


def test_no_pair_at_all_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match=r"lower preferences.min_margin"):
        _run(root, judge={"kind": "callable", "callable": "tongue:flat"})
    empty = read_table(root / "artifacts" / "prepared" / "preferences.parquet", PAIRS).iloc[:0]
    write_table(empty, root / "artifacts" / "prepared" / "preferences.parquet", PAIRS)
    with pytest.raises(DataError, match="source: judge"):
        _run(root, source="pool", name="pool")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


def _constitution(root: Path, url: str) -> dict[str, Any]:
    endpoint = {"url": url, "model": "judge", "requests_per_minute": 100_000}
    return {"kind": "constitution", "gold": False, "constitution": {"principles": models.principles(root), "endpoint": endpoint}}


def test_a_constitution_compares_a_prompts_answers_two_by_two(root: Path, server: Server) -> None:
    """The server finds an answer better by its vowels, in nats: that is the margin, whatever its bias to a letter is (1.5)."""
    out, figures = _run(root, judge=_constitution(root, server.url), shards=2)
    pairs = read_table(out / "pairs.parquet", PAIRS)
    assert len(pairs) == figures["pairs"] > 0
    for pair in pairs.itertuples():
        assert vowels(pair.chosen) - vowels(pair.rejected) == pytest.approx(pair.margin)
    assert (pairs["margin"] > 0).all()
    assert set(pairs["judge"]) == {"constitution:kind:judge"}
    assert figures["position_bias"] == pytest.approx(1.5)
    assert figures["judge_completion_tokens"] == len(server.requests) >= 2 * len(pairs)
    assert "score_mean" not in figures
    assert len(read_table(out / "gold.parquet", GOLD)) == 0
    again, _ = _run(root, name="again", judge=_constitution(root, server.url))
    assert helpers.digests(out) == helpers.digests(again)
    assert figures["judge_completion_tokens"] == len(server.requests), "nothing was asked twice"


def test_one_pair_a_prompt_is_one_comparison(root: Path, server: Server) -> None:
    _, figures = _run(root, judge=_constitution(root, server.url), pairing="random")
    assert figures["judge_completion_tokens"] == 2 * 10
    assert figures["pairs"] + figures["within_margin"] == 10
