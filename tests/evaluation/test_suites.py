"""Sets from outside on real small models: against plain forward passes, and with lm-evaluation-harness where it is there."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pipelines.config import Evaluate, Generation, Suite
from pipelines.context import Worker
from pipelines.data.tokens import decode, encode_completion, encode_prompt
from pipelines.errors import DataError, EnvironmentFault
from pipelines.evaluation.suites import Job, ask, figures, harness, read_rows
from pipelines.journal import Journal
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.reward import new_reward, save_reward
from tests.small import model_folder

WORKER = Worker(0, 1, "cpu", Journal(None))
PAIRS = [
    {"prompt": "HAMLET: To be", "chosen": ", or not to be", "rejected": " the"},
    {"prompt": "JULIET: Good", "chosen": " night, good night", "rejected": " night"},
    {"prompt": "LEAR: Blow", "chosen": " winds", "rejected": " winds"},
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("suite")
    model_folder(folder / "model", seed=1)
    model = new_reward(folder / "model", "mean")
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    save_reward(model, folder / "reward")
    return Job(folder / "model", folder / "model", folder / "reward", Generation(max_new_tokens=4, batch_size=2), "float32")


@torch.no_grad()
def _logprob(job: Job, prompt: str, answer: str) -> tuple[float, int]:
    coder, model = load_tokenizer(job.model), load_causal_lm(job.model)
    asked, said = encode_prompt(coder, prompt), encode_completion(coder, answer)
    logps = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].double().log_softmax(-1)
    return float(logps[range(len(said)), said].sum()), len(said)


def test_pairs_against_plain_forward_passes(job: Job) -> None:
    """Which answer is likelier, in all and a token; equal answers are half right."""
    rows = ask(job, PAIRS, WORKER)
    for row, pair in zip(rows, PAIRS, strict=True):
        (better, long), (worse, short) = (_logprob(job, pair["prompt"], pair[side]) for side in ("chosen", "rejected"))
        assert row["accuracy"] == (0.5 if better == worse else float(better > worse))
        assert row["accuracy_per_token"] == (0.5 if better == worse else float(better / long > worse / short))
        assert row["reward_accuracy"] in ((0.5,) if better == worse else (0.0, 1.0))
    found = figures(rows)
    assert found["accuracy"] == pytest.approx(sum(row["accuracy"] for row in rows) / 3)
    assert found["rows"] == 3


def test_references_against_plain_forward_passes(job: Job) -> None:
    """The reference of the first row is the model's own greedy answer; perplexity is over both references' tokens."""
    coder, model = load_tokenizer(job.model), load_causal_lm(job.model)
    ids = encode_prompt(coder, "HAMLET: To be")
    own: list[int] = []
    with torch.no_grad():
        while len(own) < 4 and coder.eos_token_id not in own:
            own.append(int(model(torch.tensor([ids + own])).logits[0, -1].argmax()))
    references = [decode(coder, own) + " x", "no such words"]
    rows = [{"prompt": "HAMLET: To be", "reference": references[0]}, {"prompt": "LEAR: Blow", "reference": references[1]}]
    found = figures(ask(job, rows, WORKER))
    sums = [_logprob(job, row["prompt"], row["reference"]) for row in rows]
    expected = math.exp(-sum(total for total, _ in sums) / sum(count for _, count in sums))
    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert found["exact_match"] == 0.0
    assert "accuracy" not in found


def test_rows_are_of_one_kind(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    assert read_rows(path, "data/suites/set.jsonl", 2) == PAIRS[:2]
    for line, said in (
        ('{"prompt": "P", "reference": "R"}', "wrong-columns s:4 has prompt, reference .* prompt, chosen, rejected"),
        ('{"prompt": "P", "chosen": 1, "rejected": "R"}', "wrong-columns s:4"),
        ("{", "invalid-json s:4"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS) + line + "\n", encoding="utf-8")
        with pytest.raises(DataError, match=said):
            read_rows(path, "s", 0)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="0 rows"):
        read_rows(path, "s", 0)


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ({}, "needs path"),
        ({"path": "data/suites/a.jsonl", "tasks": ["arc"]}, "one of them"),
        ({"path": "elsewhere/a.jsonl"}, "below data/suites/"),
        ({"path": "data/suites/../a.jsonl"}, "below data/suites/"),
    ],
)
def test_a_suite_is_a_file_or_tasks(suite: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Evaluate.model_validate({"suites": {"mine": suite}})


def test_without_the_harness_the_error_says_what_to_do(job: Job, tmp_path: Path) -> None:
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm-evaluation-harness is installed here: the error of its absence cannot be seen")
    with pytest.raises(EnvironmentFault, match=r"evaluate.suites.arc: .*not installed: `.venv/bin/pip install lm-eval==[0-9.]+`"):
        harness("arc", Suite(tasks=["arc_easy"]), job.model, tmp_path, 2)


def test_a_task_of_the_harness(job: Job, tmp_path: Path) -> None:
    """A multiple-choice task of our own, described below data/suites: its accuracy is that of plain forward passes."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (.venv/bin/pip install lm-eval==0.4.13)")
    rows = [{"q": pair["prompt"], "options": [pair["chosen"], pair["rejected"]], "gold": 0} for pair in PAIRS[:2]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "own_pairs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "own_pairs.yaml").write_text(json.dumps(task), encoding="utf-8")
    found = harness("mine", Suite(tasks=["own_pairs"]), job.model, tmp_path, 2)
    coder, model = load_tokenizer(job.model), load_causal_lm(job.model)
    right = []
    for pair in PAIRS[:2]:
        sums = []
        for side in ("chosen", "rejected"):
            asked, said = encode_prompt(coder, pair["prompt"]), encode_completion(coder, pair[side], eos=False)
            with torch.no_grad():
                logps = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            sums.append(float(logps[range(len(said)), said].sum()))
        right.append(float(sums[0] > sums[1]))
    assert found["own_pairs/acc"] == pytest.approx(sum(right) / 2)
    with pytest.raises(DataError, match="no task 'nonesuch'"):
        harness("mine", Suite(tasks=["nonesuch"]), job.model, tmp_path, 2)
