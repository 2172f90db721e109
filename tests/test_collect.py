"""Collecting on small models: which pairs are asked, what the judge says of them, what people are shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipelines import collect as collecting
from pipelines.config import Params
from pipelines.data.schemas import PAIRS, PROMPTS
from pipelines.data.tables import read_table, write_table
from pipelines.errors import DataError
from pipelines.judges import callables
from pipelines.models.reward import member_folder, new_reward, save_reward
from tests.small import model_folder
from tests.stages.inputs import prompts

JUDGE = {"kind": "callable", "callable": "tongue:vowels"}
NAMES = {"train": 6, "validation": 2, "test": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after the reward stage: a policy, the SFT model, an ensemble of two reward models with random heads."""
    root = tmp_path_factory.mktemp("collect")
    (root / "tongue.py").write_text(
        "def vowels(prompts, answers): return [float(sum(a.count(v) for v in 'aeiou')) for a in answers]\n"
        "def flat(prompts, answers): return [0.0] * len(answers)\n",
        encoding="utf-8",
    )
    sft = model_folder(root / "artifacts/sft/model")
    model_folder(root / "artifacts/policies/ppo/model", seed=1)
    for member in range(2):
        model = new_reward(sft, "mean")
        torch.nn.init.normal_(model.head.weight, std=3.0, generator=torch.Generator().manual_seed(member))
        save_reward(model, member_folder(root / "artifacts/reward", member))
    rows = [
        (f"{split}{n}", f"LEAR: word {'so ' * (n % 3)}{split} {n}", split) for split, count in NAMES.items() for n in range(count)
    ]
    write_table(prompts(rows), root / "artifacts/prepared/prompts.parquet", PROMPTS)
    return root


@pytest.fixture
def root(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(callables, "ROOT", made)
    monkeypatch.syspath_prepend(str(made))
    return made


def params(judge: dict[str, Any] = JUDGE, **collect: Any) -> Params:
    preferences = {
        "judge": judge,
        "bradley_terry_temperature": 1e-6,
        "min_margin": 0.5,
        "precision": "float32",
        "generation": {"max_new_tokens": 6, "batch_size": 4},
    }
    sections: dict[str, Any] = {name: {} for name in ("prepare", "base", "sft", "reward", "policies", "evaluate", "report")}
    collected = {"prompts": 8, "answers": 3, "pairs": 6, **collect}
    return Params.model_validate({**sections, "preferences": preferences, "collect": collected, "runtime": {"threads": 1}})


def run(root: Path, out: Path, settings: Params, name: str = "round-001") -> dict[str, Any]:
    return collecting.collect(root, settings, root / "artifacts/policies/ppo/model", name, out)


def vowels(text: str) -> int:
    return sum(text.count(vowel) for vowel in "aeiou")


def test_the_judge_labels_what_is_asked_and_a_round_repeats_itself(root: Path, tmp_path: Path) -> None:
    facts = run(root, tmp_path / "one", params())
    table = read_table(tmp_path / "one" / "pairs.parquet", PAIRS)
    assert facts["answers"] == 24
    assert (facts["asked"], facts["uncertain"]) == (6, 3)
    assert facts["pairs"] + facts["ties"] == 6
    assert len(table) == facts["pairs"] == sum(facts["splits"].values())
    for pair in table.itertuples():
        assert vowels(pair.chosen) > vowels(pair.rejected)
    assert set(table["judge"]) == {"tongue:vowels"}
    assert set(table["source"]) == {"round-001"}
    assert table["margin"].isna().all(), "a margin would give the gold away"
    asked = read_table(root / "artifacts/prepared/prompts.parquet", PROMPTS).set_index("id")["split"]
    assert (table["prompt_id"].map(asked) == table["split"]).all()
    run(root, tmp_path / "again", params())
    assert (tmp_path / "again/pairs.parquet").read_bytes() == (tmp_path / "one/pairs.parquet").read_bytes()
    run(root, tmp_path / "next", params(), "round-002")
    assert (tmp_path / "next/pairs.parquet").read_bytes() != (tmp_path / "one/pairs.parquet").read_bytes()


def test_the_uncertain_half_is_where_the_two_reward_models_differ_most(root: Path, tmp_path: Path) -> None:
    """sigmoid of each member's difference by scalar arithmetic; of two members the variance is (p1 - p2)^2 / 4."""
    run(root, tmp_path / "all", params(pairs=1000, uncertain=0.0, labels="people"))
    run(root, tmp_path / "some", params(pairs=5, uncertain=1.0, labels="people"))
    every, some = (
        {(line["prompt"], *sorted((line["first"], line["second"]))): line for line in lines(tmp_path / name / "queue.jsonl")}
        for name in ("all", "some")
    )
    job = collecting.Doubts(root / "artifacts/sft/model", root / "artifacts/reward", 4, "float32")
    from pipelines.context import Worker
    from pipelines.journal import Journal

    def variance(line: dict[str, Any]) -> float:
        texts = [(line["prompt"], line[side], line["about"][f"{side}_ended"]) for side in ("first", "second")]
        first, second = collecting.scored(job, texts, Worker(0, 1, "cpu", Journal(None)))
        p = [1 / (1 + math.exp(two - one)) for one, two in zip(first, second, strict=True)]
        return (p[0] - p[1]) ** 2 / 4

    worth = {key: variance(line) for key, line in every.items()}
    assert len(some) == 5
    assert set(some) <= set(every)
    left = max(value for key, value in worth.items() if key not in some)
    assert min(worth[key] for key in some) >= left - 1e-9
    assert left > 0.0


def test_people_and_the_judge_are_asked_the_same_and_give_the_same_rows(root: Path, tmp_path: Path) -> None:
    """People who count vowels: the same pairs, the same winners; only judge and annotator tell them apart."""
    run(root, tmp_path / "judge", params())
    facts = run(root, tmp_path / "people", params(labels="people"))
    path = tmp_path / "people/queue.jsonl"
    answered = lines(path)
    assert facts["asked"] == len(answered) == 6
    for line in answered:
        gap = vowels(line["first"]) - vowels(line["second"])
        line["winner"] = "first" if gap > 0 else "second" if gap < 0 else "tie"
        line["annotator"] = "anna"
    path.write_text("".join(json.dumps(line) + "\n" for line in answered), encoding="utf-8")
    read = collecting.read_back(path, "round-001", tmp_path / "read")
    ours, theirs = (read_table(tmp_path / name / "pairs.parquet", PAIRS) for name in ("read", "judge"))
    shared = [name for name in theirs if name != "judge"]
    pd.testing.assert_frame_equal(ours[shared], theirs[shared])
    assert set(ours["judge"]) == {"people"}
    assert set(ours["annotator"]) == {"anna"}
    assert read["pairs"] + read["ties"] == 6


def test_which_answer_people_see_first_is_drawn() -> None:
    """Of 40 pairs some keep their order and some are turned round, and each answer keeps its own flag."""
    count = 40
    answers = pd.DataFrame({
        "prompt_id": "p", "prompt": "LEAR:", "group": "lear", "split": "train",
        "answer": [f" {row}" for row in range(2 * count)], "ended": [row % 2 == 0 for row in range(2 * count)],
    })  # fmt: skip
    rows = collecting.asked(answers, [(2 * n, 2 * n + 1) for n in range(count)], "round-001", seed=7)
    kept = [row for n, row in enumerate(rows) if row["first"] == f" {2 * n}"]
    assert 0 < len(kept) < count
    for row in rows:
        assert row["about"]["first_ended"] == (int(row["first"]) % 2 == 0)
        assert row["about"]["second_ended"] == (int(row["second"]) % 2 == 0)


def test_a_judge_that_sees_no_difference_is_an_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="round-001: no pair has a winner"):
        run(root, tmp_path / "flat", params(judge={"kind": "callable", "callable": "tongue:flat"}))


def test_equal_answers_make_no_pair() -> None:
    """Two prompts: answers a, b, a make one pair (0, 1); answers c, c make none."""
    answers = pd.DataFrame({"prompt_id": ["p", "p", "p", "q", "q"], "answer": ["a", "b", "a", "c", "c"]})
    assert collecting.candidates(answers) == [(0, 1)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
