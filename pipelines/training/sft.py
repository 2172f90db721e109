"""Supervised fine-tuning with TRL's SFTTrainer: cross-entropy on the completion's tokens and its EOS, nothing else.

Paper: Ouyang et al. 2022, "Training language models to follow instructions with human feedback", section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from pipelines import config
from pipelines.context import Worker
from pipelines.data import lengths
from pipelines.data.schemas import DEMONSTRATIONS
from pipelines.data.tables import read_table, write_json
from pipelines.data.tokens import examples
from pipelines.errors import ConfigurationError
from pipelines.models.adapters import add_adapter, is_adapted, merge, save_adapter
from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model
from pipelines.models.soft_prompt import room, trains_prompt
from pipelines.training import hf
from pipelines.training.distributed import shared_out
from pipelines.training.packing import check_apart, collator, packed

IGNORED = -100


@dataclass(frozen=True)
class Job:
    """Paths and settings: the base model's folder, the demonstrations, where results and checkpoints go."""

    base: Path
    demonstrations: Path
    out: Path
    scratch: Path
    training: config.Sft
    seed: int


class Sft(hf.Frame, SFTTrainer):
    """TRL's trainer in our frame."""


def train(job: Job, worker: Worker) -> None:
    """Beats: rows, model, trainer, training, held-out loss, results (rank 0 writes them below ``job.out``)."""
    # 1. rows, tokenised once
    tokenizer = load_tokenizer(job.base)
    table = read_table(job.demonstrations, DEMONSTRATIONS)
    splits = ("train", "validation")
    rows = {split: _rows(tokenizer, table[table["split"] == split], job.training.loss_on) for split in splits}

    # 2. the model, with fresh adapters where asked
    torch.manual_seed(job.seed)
    model = add_adapter(load_causal_lm(job.base, worker.device), job.training)
    limit, counts = _limit(job.training, room(model)), {}
    for split in splits:
        where = f"demonstrations ({split})"
        rows[split], counts[split] = lengths.fit(rows[split], limit, job.training.excess_length, where)
        hf.refuse_empty(rows[split], where)
    longest = {split: max(len(row["input_ids"]) for row in some) for split, some in rows.items()}
    counts["train"] |= _token_counts(rows["train"])

    # 3. what is trained on, rows or packed sequences of them; its order is fixed here, for all epochs
    sequences = rows["train"]
    if job.training.packing:
        check_apart(model, rows["train"])
        sequences = packed(rows["train"], limit)
        longest["train"] = limit * hf.micro_batch(job.training, worker.world_size)
        counts["train"]["packed_sequences"] = len(sequences)
    order = hf.row_order(job.training, [len(row["input_ids"]) for row in sequences], job.seed)
    arguments = hf.arguments(job.training, worker, job.scratch / "checkpoints", len(order) // job.training.batch_size, job.seed)
    trainer = Sft(
        model=model,
        args=SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}),
        data_collator=collator(tokenizer.pad_token_id) if job.training.packing else None,
        train_dataset=Dataset.from_list(sequences),
        eval_dataset=Dataset.from_list(rows["validation"]),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal)],
    )
    trainer.order = order

    # 4. training and the held-out loss
    hf.resume_and_train(trainer, job.training.precision, worker, longest["train"])
    held_out = trainer.evaluate()

    # 5. results
    if worker.rank == 0:
        _write(job, trainer, tokenizer, held_out["eval_loss"], len(rows["train"]), counts["train"])


def labelled(row: dict[str, list[int]]) -> dict[str, list[int]]:
    """``input_ids`` [T] and ``labels`` [T]: the token itself where the completion's mask is 1, -100 elsewhere."""
    pairs = zip(row["input_ids"], row["completion_mask"], strict=True)
    return {"input_ids": row["input_ids"], "labels": [token if kept else IGNORED for token, kept in pairs]}


def _rows(tokenizer: Any, table: Any, loss_on: str) -> list[dict[str, list[int]]]:
    def encoded(texts: Sequence[tuple[str, str]]) -> list[dict[str, list[int]]]:
        prompts, completions = zip(*texts, strict=True)
        return [labelled(row) for row in examples(tokenizer, prompts, completions, loss_on)]

    return shared_out(encoded, list(zip(table["prompt"], table["completion"], strict=True)))


def _limit(training: config.Sft, context: int) -> int:
    """Tokens of a row, and of a packed sequence, at most."""
    if training.max_length > context:
        raise ConfigurationError(f"sft.max_length {training.max_length} exceeds the model's context of {context}; lower it")
    return training.max_length or context


def _token_counts(rows: list[dict[str, list[int]]]) -> dict[str, float]:
    """Quantiles of the tokens of a training row, and of those that are learnt."""
    learnt = [sum(label != IGNORED for label in row["labels"]) for row in rows]
    return lengths.quantiles("tokens", [len(row["input_ids"]) for row in rows]) | lengths.quantiles("tokens_learnt", learnt)


def _write(job: Job, trainer: Sft, tokenizer: Any, eval_loss: float, rows: int, counts: dict[str, float]) -> None:
    history = hf.write_history(trainer, job.out)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_adapted(model) or trains_prompt(model):
        save_adapter(model, job.out / "adapter", "../../base")
    save_model(merge(model), tokenizer, job.out / "model")
    figures = {"eval_loss": eval_loss, "loss": float(history["loss"].dropna().iloc[-1])}
    write_json(job.out / "metrics.json", figures | counts | {"steps": trainer.state.global_step, "demonstrations": rows})
