"""DPO: losses at the start in closed form, rewards against log-probabilities of the saved models, resumption."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import config
from pipelines.data.tables import read_table
from pipelines.models.generation import response_logprobs
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import dpo
from pipelines.training.pairs import Row, read_rows
from tests.training import helpers

SMALL: dict[str, Any] = helpers.SMALL | {"method": "dpo", "learns_from": "pairs.parquet", "beta": 0.1}


def _job(folder: Path, name: str = "run", **some: Any) -> dpo.Job:
    return dpo.Job(
        sft=helpers.sft_folder(folder),
        pairs=helpers.pairs_file(folder),
        out=folder / name / "out",
        scratch=folder / name,
        training=config.Dpo(**(SMALL | some)),
        seed=7,
    )


def _logps(folder: Path, rows: list[Row], side: str) -> np.ndarray:
    """Log-probability of each answer under a model folder, by our own code: [B]."""
    prompts, answers = [row["prompt_ids"] for row in rows], [row[side] for row in rows]
    values = response_logprobs(load_causal_lm(folder), prompts, answers, 1.0, "float32", 4)
    return np.array([float(value.sum()) for value in values])


@pytest.mark.parametrize(
    ("loss", "some", "expected"),
    [
        ("sigmoid", {}, math.log(2)),  # -log sigmoid(0)
        ("ipo", {}, 25.0),  # (0 - 1 / (2 * 0.1))^2
        ("hinge", {}, 1.0),  # max(0, 1 - 0)
        ("robust", {"label_smoothing": 0.1}, math.log(2)),  # (0.9 ln 2 - 0.1 ln 2) / (1 - 0.2)
    ],
)
def test_the_first_loss_in_closed_form(tmp_path: Path, loss: str, some: dict[str, float], expected: float) -> None:
    """A fresh adapter is its own reference: every log ratio is 0."""
    job = _job(tmp_path, loss_type=loss, num_train_epochs=1, **some)
    dpo.train(job, helpers.worker())
    history = read_table(job.out / "history.parquet")
    assert history["loss"][0] == pytest.approx(expected, abs=1e-4)
    assert history["rewards/margins"][0] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "none", "prompt"])
def test_the_rewards_are_beta_times_the_log_ratio_to_the_sft_model(tmp_path: Path, adapter: str) -> None:
    rates = {"lora": 1e-2, "none": 1e-3, "prompt": 1e-2}
    job = _job(tmp_path, adapter=adapter, num_train_epochs=4, learning_rate=rates[adapter])
    before = helpers.digests(job.sft)
    dpo.train(job, helpers.worker())
    assert helpers.digests(job.sft) == before
    figures = helpers.figures(job.out)
    rows = read_rows(job.pairs, load_tokenizer(job.sft))["validation"]
    for side in ("chosen", "rejected"):
        ratio = _logps(job.out / "model", rows, f"{side}_ids") - _logps(job.sft, rows, f"{side}_ids")
        assert figures[f"eval_rewards/{side}"] == pytest.approx(0.1 * ratio.mean(), abs=1e-4)
    assert figures["eval_rewards/accuracies"] == 1.0
    assert figures["eval_rewards/margins"] == pytest.approx(
        figures["eval_rewards/chosen"] - figures["eval_rewards/rejected"], abs=1e-5
    )
    # a soft prompt moves the random model less than its weights do
    assert figures["eval_loss"] < math.log(2) - (0.02 if adapter == "prompt" else 0.1)
    assert (job.out / "adapter").exists() == (adapter != "none")


def test_pairs_with_a_cut_answer_can_be_left_out(tmp_path: Path) -> None:
    """One rejected answer in three was cut: 22 of 32 pairs are left, in the order of the table."""
    job = _job(tmp_path, ended_only=True, num_train_epochs=1)
    dpo.train(job, helpers.worker())
    assert helpers.figures(job.out)["train_pairs"] == 22
    tokenizer = load_tokenizer(job.sft)
    rows = read_rows(job.pairs, tokenizer, ended_only=True)["train"]
    assert rows == [row for row in read_rows(job.pairs, tokenizer)["train"] if row["rejected_ids"][-1] == tokenizer.eos_token_id]


def test_a_run_repeats_and_resumes_to_the_last_bit(tmp_path: Path) -> None:
    once, killed = _job(tmp_path, "once"), _job(tmp_path, "killed")
    for job in (once, killed):
        dpo.train(job, helpers.worker())
    expected = helpers.digests(once.out)
    assert helpers.digests(killed.out) == expected
    assert sorted(expected)[:2] == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    shutil.rmtree(killed.scratch / "checkpoints" / "checkpoint-8")
    shutil.rmtree(killed.out)
    dpo.train(killed, helpers.worker(tmp_path / "journal"))
    assert helpers.steps(tmp_path / "journal") == [7, 8]
    assert helpers.digests(killed.out) == expected
