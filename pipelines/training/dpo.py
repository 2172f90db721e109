"""Direct preference optimisation with TRL's DPOTrainer, straight from pairs: no reward model, no sampling.

Papers: Rafailov et al. 2023, eq. 7 (sigmoid); Mitchell 2023, "A note on DPO with noisy preferences" (sigmoid with label
smoothing: cDPO); Lambert et al. 2024 (sigmoid_norm); Azar et al. 2023, eq. 17 (ipo); Zhao et al. 2023 (hinge); Chowdhury et al.
2024 (robust); Ji et al. 2024, eq. 16 (exo_pair); Chen et al. 2024 (nca_pair); Jung et al. 2024 (bco_pair); Wu et al. 2024,
eq. 4.7 (sppo_hard); D'Oosterlinck et al. 2024, eq. 7 and 8 (apo_zero, apo_down).
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from pipelines import config
from pipelines.context import Worker
from pipelines.models.adapters import add_adapter, lora_config
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.soft_prompt import room
from pipelines.training import hf
from pipelines.training.offline import Job, fitting_pairs, write
from pipelines.training.pairs import Row, length, longest

__all__ = ["Job", "train"]

REPORTED = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


class Dpo(hf.Frame, DPOTrainer):
    """TRL's trainer in our frame."""


def train(job: Job[config.Dpo], worker: Worker) -> None:
    """Beats: policy, pairs, trainer, training, held-out figures, results (rank 0 writes them below ``job.out``)."""
    # 1. the policy; its reference is the SFT model: the policy with its adapter off, or a second copy without adapters
    tokenizer = load_tokenizer(job.sft)
    torch.manual_seed(job.seed)
    model = load_causal_lm(job.sft, worker.device)
    if job.training.adapter == "prompt":
        model = add_adapter(model, job.training)

    # 2. pairs, tokenised once
    rows, figures = fitting_pairs(job, tokenizer, room(model))

    # 3. the trainer
    trainer = make_trainer(job, worker, model, tokenizer, rows)

    # 4. training and the held-out figures
    hf.resume_and_train(trainer, job.training.precision, worker, longest(rows["train"]))
    held_out = hf.repeatable(trainer.evaluate())

    # 5. results
    if worker.rank == 0:
        write(job, trainer, tokenizer, held_out, figures, REPORTED)


def losses(training: config.Dpo) -> dict[str, Any]:
    """TRL's arguments for the loss.

    cDPO is (1 - e) S + e F with S = -log sigmoid(h), F = -log sigmoid(-h). TRL has dropped it, but has S and
    R = ((1 - e) S - e F) / (1 - 2 e), and sums of its losses: cDPO = 2 (1 - e) S - (1 - 2 e) R.
    """
    smoothing = training.label_smoothing
    if training.loss_type == "sigmoid" and smoothing:
        weights = [2.0 * (1.0 - smoothing), -(1.0 - 2.0 * smoothing)]
        return {"loss_type": ["sigmoid", "robust"], "loss_weights": weights, "label_smoothing": smoothing}
    return {"loss_type": [training.loss_type], "label_smoothing": smoothing}


def make_trainer(job: Job[config.Dpo], worker: Worker, model: Any, tokenizer: Any, rows: dict[str, list[Row]]) -> Dpo:
    """The trainer of ``model`` against the SFT model, with the order of its rows fixed."""
    training, adapted = job.training, job.training.adapter == "lora"
    order = hf.row_order(training, [length(row) for row in rows["train"]], job.seed)
    steps = len(order) // training.batch_size
    arguments = hf.arguments(training, worker, job.scratch / "checkpoints", steps, job.seed)
    trainer = Dpo(
        model=model,
        ref_model=None if adapted else load_causal_lm(job.sft, worker.device),
        peft_config=lora_config(model, training) if adapted else None,
        args=DPOConfig(**arguments, **losses(training), beta=training.beta),
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(rows["validation"]),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal)],
    )
    trainer.order = order
    return trainer
