"""Direct preference optimisation with TRL's DPOTrainer, straight from pairs: no reward model, no sampling.

Paper: Rafailov et al. 2023, eq. 7 (sigmoid); Azar et al. 2023, eq. 17 (ipo); Zhao et al. 2023 (hinge); Chowdhury et al.
2024 (robust).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from pipelines import config
from pipelines.context import Worker
from pipelines.data import lengths
from pipelines.data.tables import write_json
from pipelines.models.adapters import add_adapter, is_adapted, lora_config, merge, save_adapter
from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model
from pipelines.models.soft_prompt import room, trains_prompt
from pipelines.training import hf
from pipelines.training.pairs import Row, length, longest, read_rows, token_counts

REPORTED = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


@dataclass(frozen=True)
class Job:
    """Paths and settings: the SFT model's folder, the pairs, where results and checkpoints go."""

    sft: Path
    pairs: Path
    out: Path
    scratch: Path
    training: config.Dpo
    seed: int


class Dpo(hf.Frame, DPOTrainer):
    """TRL's trainer in our frame."""


def train(job: Job, worker: Worker) -> None:
    """Beats: pairs, models, trainer, training, held-out figures, results (rank 0 writes them below ``job.out``)."""
    # 1. pairs, tokenised once
    tokenizer = load_tokenizer(job.sft)
    rows = read_rows(job.pairs, tokenizer, job.training.pairs_per_prompt, job.training.ended_only)

    # 2. the policy; its reference is the SFT model: the policy with its LoRA off, or a second copy
    torch.manual_seed(job.seed)
    model = load_causal_lm(job.sft, worker.device)
    if job.training.adapter == "prompt":
        model = add_adapter(model, job.training)
    context, counts = room(model), {}
    for split in ("train", "validation"):
        where = f"{job.pairs.name} ({split})"
        rows[split], counts[split] = lengths.fit_pairs(rows[split], context, job.training.excess_length, where)
        hf.check_lengths(rows[split], longest(rows[split]), context, where)

    # 3. the trainer
    trainer = _trainer(job, worker, model, tokenizer, rows)

    # 4. training and the held-out figures
    hf.resume_and_train(trainer, job.training.precision, worker, longest(rows["train"]))
    held_out = hf.repeatable(trainer.evaluate())

    # 5. results
    if worker.rank == 0:
        tokens = sum(len(row["chosen_ids"]) for row in rows["train"]) / len(rows["train"])
        figures = token_counts(rows["train"]) | {"train_pairs": len(rows["train"]), "chosen_tokens": tokens}
        _write(job, trainer, tokenizer, held_out, counts["train"] | figures)


def _trainer(job: Job, worker: Worker, model: Any, tokenizer: Any, rows: dict[str, list[Row]]) -> Dpo:
    training = job.training
    adapted = training.adapter == "lora"
    order = hf.row_order(training, [length(row) for row in rows["train"]], job.seed)
    steps = len(order) // training.batch_size
    arguments = hf.arguments(training, worker, job.scratch / "checkpoints", steps, job.seed)
    trainer = Dpo(
        model=model,
        ref_model=None if adapted else load_causal_lm(job.sft, worker.device),
        peft_config=lora_config(model, training) if adapted else None,
        args=DPOConfig(**arguments, beta=training.beta, loss_type=[training.loss_type], label_smoothing=training.label_smoothing),
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["validation"]),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal)],
    )
    trainer.order = order
    return trainer


def _write(job: Job, trainer: Dpo, tokenizer: Any, held_out: dict[str, float], rows: dict[str, float]) -> None:
    history = hf.write_history(trainer, job.out)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_adapted(model) or trains_prompt(model):
        save_adapter(model, job.out / "adapter", "../../../sft/model")
    save_model(merge(model), tokenizer, job.out / "model")
    last = {name: float(history[name].dropna().iloc[-1]) for name in REPORTED}
    figures = last | {f"eval_{name}": held_out[f"eval_{name}"] for name in REPORTED}
    write_json(job.out / "metrics.json", figures | rows | {"steps": trainer.state.global_step})
