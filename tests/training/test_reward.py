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

SMALL: dict[str, Any] = helpers.SMALL | {"eval_steps": 2, "early_stopping_patience": 5, "layers": 0}


def _job(folder: Path, name: str = "run", **some: Any) -> reward.Job:
    return reward.Job(
        sft=helpers.sft_folder(folder),
        pairs=helpers.pairs_file(folder),
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


def test_a_margin_is_asked_of_the_difference() -> None:
    """TRL's loss takes it off: with all scores 0 a margin of 1 costs log(1 + e) = 1.3133."""
    row = {"prompt_ids": [5], "chosen_ids": [7], "rejected_ids": [8]}
    assert "margin" not in reward.collate_pairs([row])
    assert reward.collate_pairs([row | {"margin": 1.0}, row | {"margin": 0.0}])["margin"].tolist() == [1.0, 0.0]


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


def test_disagreement_by_hand() -> None:
    """Margins of two members on three pairs: (1, 1), (1, -1), (-1, -3). One in three is split; the means are 1, 0, -2."""
    found = reward.disagreement([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [1.0, 3.0]])
    assert found == {"ensemble_accuracy": 0.5, "members_split": pytest.approx(1 / 3)}


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


def _ranked(folder: Path, **some: Any) -> reward.Job:
    """A job on three ranked answers a prompt: 16 prompts, 48 pairs."""
    folder.mkdir(exist_ok=True)
    helpers.ranked(folder)
    return _job(folder, **(some | {"num_train_epochs": 6}))


@pytest.mark.parametrize(
    ("loss", "at_first", "examples"),
    [("all_pairs", math.log(2), 16), ("plackett_luce", math.log(6) / 2, 16), ("regression", 1.0, 48)],
)
def test_a_ranking_is_learnt_by_every_loss(tmp_path: Path, loss: str, at_first: float, examples: int) -> None:
    """All scores are 0 at first: ln 2 a comparison; ln 3 and ln 2 for the choices of three and of two; the variance of
    standardised grades, 1, where a batch holds all of them (their 48 answers are distinct: 16 prompts of three)."""
    size = examples if loss == "regression" else 8
    job = _ranked(tmp_path, loss=loss, batch_size=size, micro_batch_size=size // 2, learning_rate=2e-2)
    reward.train(job, helpers.worker())
    history, figures = read_table(job.out / "history.parquet"), helpers.figures(job.out)
    assert history["loss"][0] == pytest.approx(at_first, abs=1e-5)
    assert figures["train_examples"] == examples
    assert figures["train_pairs"] == 48
    assert figures["pair_accuracy"] == 1.0
    assert figures["eval_loss"] < 0.5 * at_first


def test_margin_and_centring_reach_the_loss(tmp_path: Path) -> None:
    """Margins 1, 2, 1 of each prompt, times 0.5: the first loss is the mean of log(1 + e^m), (2 log(1 + e^0.5) + log(1 + e)) / 3.

    Centring draws the two scores' sum to 0, so what is left for ``centre`` to take off is smaller than without.
    """
    plain, centred = (_ranked(tmp_path / str(c), batch_size=48, center_rewards_coefficient=c, margin=0.5) for c in (0.0, 1.0))
    for job in (plain, centred):
        reward.train(job, helpers.worker())
    expected = (2 * math.log1p(math.exp(0.5)) + math.log1p(math.exp(1.0))) / 3
    assert read_table(plain.out / "history.parquet")["loss"][0] == pytest.approx(expected, abs=1e-6)
    offsets = [abs(helpers.figures(job.out)["centre"]) for job in (plain, centred)]
    assert offsets[1] < offsets[0] / 2


def test_what_a_loss_needs_and_the_pairs_do_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair has a margin"):
        reward.train(_job(tmp_path, margin=1.0), helpers.worker())
    with pytest.raises(DataError, match="no answer has a grade"):
        reward.train(_job(tmp_path, loss="regression"), helpers.worker())
    with pytest.raises(ValueError, match="margin 1.0 belongs to loss: bradley_terry"):
        config.Reward(loss="all_pairs", margin=1.0)
