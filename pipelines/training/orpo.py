"""Odds-ratio preference optimisation with TRL's ORPOTrainer (of its experimental part), straight from pairs: no reference model.

Paper: Hong, Lee and Thorne 2024, eq. 6 and 7: cross-entropy of the chosen answer - beta log sigmoid(log(odds(chosen) /
odds(rejected))), with odds = p / (1 - p) and log p the mean over an answer's tokens. TRL's cross-entropy counts the prompt's
tokens as well.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars

from pipelines import config
from pipelines.context import Worker
from pipelines.models.adapters import lora_config
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import hf
from pipelines.training.offline import Job, fitting_pairs, write
from pipelines.training.pairs import Row, length, longest

with warnings.catch_warnings(action="ignore"):  # it says at every import that it may change; constraints.txt pins it
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

__all__ = ["Job", "train"]

REPORTED = (
    "loss", "nll_loss", "log_odds_ratio", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected",
)  # fmt: skip


class Orpo(hf.Frame, ORPOTrainer):
    """TRL's trainer in our frame."""

    @staticmethod
    def tokenize_row(feature: dict[str, list[int]], model: Any = None) -> dict[str, list[int]]:
        """Rows come tokenised."""
        return feature


def train(job: Job[config.Orpo], worker: Worker) -> None:
    """Beats: policy, pairs, trainer, training, held-out figures, results (rank 0 writes them below ``job.out``)."""
    # 1. the policy
    tokenizer = load_tokenizer(job.sft)
    torch.manual_seed(job.seed)
    model = load_causal_lm(job.sft, worker.device)

    # 2. pairs, tokenised once
    rows, figures = fitting_pairs(job, tokenizer, model.config.max_position_embeddings)

    # 3. the trainer
    trainer = make_trainer(job, worker, model, tokenizer, rows)

    # 4. training and the held-out figures
    hf.resume_and_train(trainer, job.training.precision, worker, longest(rows["train"]))
    held_out = hf.repeatable(trainer.evaluate())

    # 5. results
    if worker.rank == 0:
        write(job, trainer, tokenizer, held_out, figures, REPORTED)


def labelled(row: Row) -> Row:
    """A pair as TRL's ORPO takes it: for both answers ``input_ids``, ``attention_mask``, and ``labels`` (-100 on the prompt)."""
    prompt, made = row["prompt_ids"], {}
    for side in ("chosen", "rejected"):
        answer = row[f"{side}_ids"]
        made[f"{side}_input_ids"] = prompt + answer
        made[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        made[f"{side}_labels"] = [-100] * len(prompt) + answer
    return made


def make_trainer(job: Job[config.Orpo], worker: Worker, model: Any, tokenizer: Any, rows: dict[str, list[Row]]) -> Orpo:
    """The trainer of ``model``, with the order of its rows fixed."""
    training = job.training
    order = hf.row_order(training, [length(row) for row in rows["train"]], job.seed)
    steps = len(order) // training.batch_size
    arguments = hf.arguments(training, worker, job.scratch / "checkpoints", steps, job.seed)
    arguments["max_length"] = model.config.max_position_embeddings
    disable_progress_bars()
    trainer = Orpo(
        model=model,
        peft_config=lora_config(model, training) if training.adapter != "none" else None,
        args=ORPOConfig(**arguments, beta=training.beta),
        train_dataset=Dataset.from_list([labelled(row) for row in rows["train"]]),
        eval_dataset=Dataset.from_list([labelled(row) for row in rows["validation"]]),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal)],
    )
    trainer.order = order
    return trainer
