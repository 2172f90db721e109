"""The reward model's training: the first loss is ln 2, one word is learnt, early stopping, resumption to the last bit."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from pipelines import config
from pipelines.data.tables import read_table
from pipelines.errors import DataError
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward import load_reward, score
from pipelines.training import hf, reward
from pipelines.training.pairs import read_rows
from tests import small
from tests.training import helpers

SMALL: dict[str, Any] = {
    "adapter": "lora",
    "precision": "float32",
    "learning_rate": 1e-2,
    "batch_size": 8,
    "micro_batch_size": 4,
    "save_steps": 3,
    "num_train_epochs": 2,
    "eval_steps": 2,
    "early_stopping_patience": 5,
    "layers": 0,
}


def _job(folder: Path, name: str = "run", **some: Any) -> reward.Job:
    sft = folder / "sft" if (folder / "sft").exists() else small.model_folder(folder / "sft")
    table = folder / "pairs.parquet"
    return reward.Job(
        sft=sft,
        pairs=table if table.exists() else helpers.pairs(folder),
        out=folder / name / "out",
        scratch=folder / name,
        training=config.Reward(**(SMALL | some)),
        seed=7,
    )


def test_pairs_become_rows_with_eos_only_where_the_answer_ended(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(small.model_folder(tmp_path / "sft"))
    rows = read_rows(helpers.pairs(tmp_path), tokenizer)
    assert {split: len(some) for split, some in rows.items()} == {"train": 32, "validation": 8, "test": 8}
    for number, row in enumerate(rows["train"]):
        assert row["chosen_ids"][-1] == tokenizer.eos_token_id
        assert (row["rejected_ids"][-1] == tokenizer.eos_token_id) == (number % 3 != 2)


def test_the_chosen_come_first_and_the_answer_is_masked() -> None:
    rows = [
        {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9]},
        {"prompt_ids": [5], "chosen_ids": [10, 11], "rejected_ids": [12]},
    ]
    batch = reward.collate_pairs(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [5, 10, 11, 0], [5, 6, 8, 9], [5, 12, 0, 0]]
    assert batch["answer_mask"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]


def test_held_out_figures_by_hand() -> None:
    rows = [
        {"prompt_ids": [1], "chosen_ids": [1, 2], "rejected_ids": [1]},
        {"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1]},
        {"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1, 2, 3]},
        {"prompt_ids": [1], "chosen_ids": [1, 2], "rejected_ids": [1, 2, 3]},
    ]
    figures = reward.held_out_figures(rows, [2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 3.0])
    assert figures["pair_accuracy"] == (1 + 0.5 + 1 + 0) / 4
    assert figures["longer_wins"] == (1 + 0.5 + 0 + 0) / 4
    expected = [math.log(1 + math.exp(-margin)) for margin in (2.0, 0.0, 1.0, -3.0)]
    assert figures["log_loss"] == pytest.approx(sum(expected) / 4, abs=1e-12)
    assert reward.held_out_figures([], [], []) == {}


@pytest.mark.parametrize("adapter", ["lora", "none", "prompt"])
def test_one_word_is_learnt_and_the_scores_are_centred(tmp_path: Path, adapter: str) -> None:
    job = _job(tmp_path, adapter=adapter, num_train_epochs=4)
    reward.train(job, helpers.worker(tmp_path / "journal"))
    history, figures = read_table(job.out / "history.parquet"), helpers.figures(job.out)
    assert history["loss"][0] == pytest.approx(math.log(2), abs=1e-7)  # the head is zero: no answer is better
    assert figures["pair_accuracy"] == 1.0
    assert figures["log_loss"] < 0.3
    assert (figures["train_pairs"], figures["validation_pairs"], figures["test_pairs"]) == (32, 8, 8)

    model, rows = load_reward(job.out, job.sft), read_rows(job.pairs, load_tokenizer(job.sft))
    held_out = rows["validation"] + rows["test"]
    prompts = [row["prompt_ids"] for row in held_out]
    chosen = score(model, prompts, [row["chosen_ids"] for row in held_out], 8, "float32")
    rejected = score(model, prompts, [row["rejected_ids"] for row in held_out], 8, "float32")
    assert np.mean(chosen + rejected) == pytest.approx(0.0, abs=1e-6)
    assert min(np.array(chosen) - np.array(rejected)) > 0
    margins = np.array(chosen[8:]) - np.array(rejected[8:])
    assert figures["log_loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), abs=1e-6)


def test_the_weights_of_the_lowest_held_out_loss_are_the_result(tmp_path: Path) -> None:
    """A rate far too high spoils the model after a while; the result is the best evaluation's, not the last step's."""
    job = _job(tmp_path, learning_rate=0.3, num_train_epochs=6, eval_steps=1, early_stopping_patience=3)
    reward.train(job, helpers.worker())
    history, figures = read_table(job.out / "history.parquet"), helpers.figures(job.out)
    losses = history["eval_loss"].dropna().tolist()
    best = losses.index(min(losses))
    assert figures["eval_loss"] == min(losses)
    assert figures["steps"] == len(losses) == min(best + 1 + 3, 24)
    model, rows = load_reward(job.out, job.sft), read_rows(job.pairs, load_tokenizer(job.sft))["validation"]
    prompts = [row["prompt_ids"] for row in rows]
    chosen = torch.tensor(score(model, prompts, [row["chosen_ids"] for row in rows], 8, "float32"))
    rejected = torch.tensor(score(model, prompts, [row["rejected_ids"] for row in rows], 8, "float32"))
    assert float(-torch.nn.functional.logsigmoid(chosen - rejected).mean()) == pytest.approx(min(losses), rel=1e-3, abs=1e-6)


def test_patience_is_read_from_the_log() -> None:
    callback, control = reward.KeepBest(2), TrainerControl()
    state = TrainerState(log_history=[{"step": s, "eval_loss": v} for s, v in ((1, 0.7), (2, 0.5), (3, 0.6))])
    callback.on_evaluate(None, state, control)
    assert not control.should_training_stop
    state.log_history.append({"step": 4, "eval_loss": 0.55})
    callback.on_evaluate(None, state, control)
    assert control.should_training_stop


def test_a_run_repeats_and_resumes_to_the_last_bit(tmp_path: Path) -> None:
    once, killed = _job(tmp_path, "once"), _job(tmp_path, "killed")
    for job in (once, killed):
        reward.train(job, helpers.worker())
    expected = helpers.digests(once.out)
    assert helpers.digests(killed.out) == expected
    for folder in hf.checkpoints(killed.scratch / "checkpoints")[:1]:
        shutil.rmtree(folder)
    shutil.rmtree(killed.out)
    reward.train(killed, helpers.worker(tmp_path / "journal"))
    assert helpers.steps(tmp_path / "journal") == [7, 8]
    assert helpers.digests(killed.out) == expected


def test_no_validation_pairs_is_an_error(tmp_path: Path) -> None:
    helpers.pairs(tmp_path, (8, 0, 8))
    with pytest.raises(DataError, match=r"pairs.parquet \(validation\): 0 rows"):
        reward.train(_job(tmp_path), helpers.worker())
