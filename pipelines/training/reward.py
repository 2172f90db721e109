"""A Bradley-Terry reward model with TRL's RewardTrainer, stopped early by held-out pairs.

Paper: Bradley and Terry 1952; Stiennon et al. 2020, section 3.4: loss = -log sigmoid(r(x, y_chosen) - r(x, y_rejected)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RewardConfig, RewardTrainer

from pipelines import config
from pipelines.context import Worker
from pipelines.data import lengths
from pipelines.data.tables import write_json
from pipelines.models.adapters import add_adapter
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward import RewardModel, collate, new_reward, save_reward, score
from pipelines.models.soft_prompt import room
from pipelines.training import hf
from pipelines.training.calibration import calibration
from pipelines.training.pairs import Row, length, longest, read_rows, token_counts


@dataclass(frozen=True)
class Job:
    """Paths and settings: the SFT model's folder, the pairs, where results and checkpoints go."""

    sft: Path
    pairs: Path
    out: Path
    scratch: Path
    training: config.Reward
    seed: int


class Reward(hf.Frame, RewardTrainer):
    """TRL's trainer in our frame."""


class KeepBest(TrainerCallback):
    """Keeps the weights with the lowest held-out loss and stops when it has not fallen for ``patience`` evaluations.

    Everything is read from the trainer's log, so a resumed training decides as an uninterrupted one.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.trainer: hf.Frame | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The last step is evaluated too."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare with the evaluations so far."""
        losses = evaluations(state.log_history)
        best = losses.index(min(losses))
        if best == len(losses) - 1 and self.trainer is not None:
            self.trainer.best = self.trainer.trainable()
        if len(losses) - 1 - best >= self.patience:
            control.should_training_stop = True


def train(job: Job, worker: Worker) -> None:
    """Beats: pairs, model, trainer, training with early stopping, centre and held-out figures (rank 0 writes them)."""
    # 1. pairs, tokenised once
    tokenizer = load_tokenizer(job.sft)
    rows = read_rows(job.pairs, tokenizer)

    # 2. the model: the SFT model's trunk, fresh adapters where asked, a head of zeros
    torch.manual_seed(job.seed)
    model = new_reward(job.sft, job.training.pooling, job.training.layers, worker.device)
    model.trunk = add_adapter(model.trunk, job.training)
    context, counts = room(model.trunk), {}
    for split, some in rows.items():
        where = f"{job.pairs.name} ({split})"
        rows[split], counts[split] = lengths.fit_pairs(some, context, job.training.excess_length, where)
        hf.check_lengths(rows[split], longest(rows[split]), context, where)

    # 3. the trainer
    trainer = _trainer(job, worker, model, tokenizer, rows)

    # 4. training; the weights of the lowest held-out loss are the result
    hf.resume_and_train(trainer, job.training.precision, worker, longest(rows["train"]))
    if trainer.best is not None:
        trainer.restore(trainer.best)

    # 5. results
    if worker.rank == 0:
        _write(job, trainer, rows, counts["train"] | token_counts(rows["train"]))


def evaluations(logs: list[dict[str, float]]) -> list[float]:
    """The held-out losses logged so far, in order."""
    return [entry["eval_loss"] for entry in logs if "eval_loss" in entry]


def collate_pairs(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows of pairs as [2B, T]: the chosen answers first, then the rejected ones, as TRL's loss takes them apart."""
    sides = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids") for row in rows]
    return collate(sides)


def held_out_figures(rows: list[Row], chosen: list[float], rejected: list[float]) -> dict[str, float]:
    """What the scores are worth on held-out pairs: accuracy (a tie counts half), log loss in nats, calibration, a plain baseline.

    ``longer_wins`` is the accuracy of preferring the answer with more tokens. Without pairs there are no figures.
    """
    if not rows:
        return {}
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    lengths = [float(len(row["chosen_ids"]) - len(row["rejected_ids"])) for row in rows]
    return {
        "pair_accuracy": _share_above_zero(margins),
        "log_loss": math.fsum(math.log1p(math.exp(-abs(m))) + max(-m, 0.0) for m in margins) / len(margins),
        "longer_wins": _share_above_zero(lengths),
    } | calibration(margins)


def _share_above_zero(values: list[float]) -> float:
    return sum((value > 0) + 0.5 * (value == 0) for value in values) / len(values)


def _trainer(job: Job, worker: Worker, model: Any, tokenizer: Any, rows: dict[str, list[Row]]) -> Reward:
    training = job.training
    order = hf.row_order(training, [length(row) for row in rows["train"]], job.seed)
    steps = len(order) // training.batch_size
    arguments = hf.arguments(training, worker, job.scratch / "checkpoints", steps, job.seed)
    keep_best = KeepBest(training.early_stopping_patience)
    trainer = Reward(
        model=model,
        args=RewardConfig(**arguments, eval_strategy="steps", eval_steps=training.eval_steps),
        data_collator=collate_pairs,
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["validation"]),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal), keep_best],
    )
    trainer.order = order
    keep_best.trainer = trainer
    return trainer


def _write(job: Job, trainer: Reward, rows: dict[str, list[Row]], fitted: dict[str, float]) -> None:
    """Centre the scores on held-out answers, judge the model on the pairs of the test split, save."""
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    scores = {split: _scores(model, rows[split], job) for split in ("validation", "test")}
    every = [value for sides in scores.values() for side in sides for value in side]
    centre = math.fsum(every) / len(every)
    model.centre.fill_(centre)
    save_reward(model, job.out, "../../sft/model")
    hf.write_history(trainer, job.out)
    losses = evaluations(trainer.state.log_history)
    figures = held_out_figures(rows["test"], *scores["test"])
    counts = {f"{split}_pairs": len(some) for split, some in rows.items()}
    stop = {"steps": trainer.state.global_step, "eval_loss": min(losses)}
    write_json(job.out / "metrics.json", figures | counts | fitted | stop | {"centre": centre})


def _scores(model: RewardModel, rows: list[Row], job: Job) -> tuple[list[float], list[float]]:
    """The uncentred scores of the chosen and of the rejected answers."""
    prompts = [row["prompt_ids"] for row in rows]
    size, precision = job.training.batch_size, job.training.precision
    chosen = score(model, prompts, [row["chosen_ids"] for row in rows], size, precision)
    return chosen, score(model, prompts, [row["rejected_ids"] for row in rows], size, precision)
