"""Kahneman-Tversky optimisation with TRL's KTOTrainer, from single answers that are good or bad.

Paper: Ethayarajh et al. 2024, eq. 7: a good answer's loss is 1 - sigmoid(beta (log ratio - z)), a bad one's
1 - sigmoid(beta (z - log ratio)). z >= 0 estimates KL(policy || reference): the mean log-ratio of the micro-batch's prompts with
each other's answers, without gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from pipelines import config
from pipelines.context import Worker
from pipelines.data import lengths
from pipelines.data.schemas import LABELS
from pipelines.data.tables import read_table
from pipelines.data.tokens import encode_completions, encode_prompts
from pipelines.errors import ConfigurationError, DataError
from pipelines.models.adapters import lora_config
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import hf
from pipelines.training.distributed import shared_out
from pipelines.training.offline import SPLITS, Job, fitting_pairs, write

__all__ = ["Job", "train"]

REPORTED = ("loss", "kl", "rewards/margins", "rewards/chosen", "rewards/rejected")
Rows = dict[str, list[dict[str, Any]]]
"""By split: rows of ``prompt_ids``, ``completion_ids`` and ``label`` (True: good)."""


class Kto(hf.Frame, KTOTrainer):
    """TRL's trainer in our frame."""


class Mismatched(DataCollatorForUnpairedPreference):
    """TRL's collator; the KL's answers are those of the micro-batch, each beside its neighbour's prompt.

    TRL makes them once, in the table's order. Our order is fixed by the seed instead, another in every epoch.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows to tensors."""
        answers = [row["completion_ids"] for row in examples]
        beside = answers[-1:] + answers[:-1]
        return super().torch_call([row | {"KL_completion_ids": ids} for row, ids in zip(examples, beside, strict=True)])


def train(job: Job[config.Kto], worker: Worker) -> None:
    """Beats: policy, answers, trainer, training, held-out figures, results (rank 0 writes them below ``job.out``)."""
    # 1. the policy; its reference is the SFT model: the policy with its adapter off, or a second copy without adapters
    tokenizer = load_tokenizer(job.sft)
    torch.manual_seed(job.seed)
    model = load_causal_lm(job.sft, worker.device)

    # 2. single answers, tokenised once
    rows, figures = read_answers(job, tokenizer, model.config.max_position_embeddings)

    # 3. the trainer
    trainer = make_trainer(job, worker, model, tokenizer, rows)

    # 4. training and the held-out figures
    hf.resume_and_train(trainer, job.training.precision, worker, max(map(_length, rows["train"])))
    held_out = hf.repeatable(trainer.evaluate())

    # 5. results
    if worker.rank == 0:
        write(job, trainer, tokenizer, held_out, figures, REPORTED)


def read_answers(job: Job[config.Kto], tokenizer: Any, context: int) -> tuple[Rows, dict[str, float]]:
    """The good and bad answers of training and validation, and the figures of the training ones.

    They are people's labels, or both answers of every pair. Raises DataError where a split lacks one of the two kinds.
    """
    if job.training.learns_from == config.LABELS_FILE:
        rows, figures = _labels(job, tokenizer, context)
    else:
        pairs, figures = fitting_pairs(job, tokenizer, context)
        rows = {split: [answer for pair in some for answer in _both(pair)] for split, some in pairs.items()}
    for split, some in rows.items():
        good = sum(row["label"] for row in some)
        if good in (0, len(some)):
            kind = "bad" if good else "good"
            raise DataError(f"{job.pairs.name} ({split}): no answer is labelled {kind}; kto learns from good and bad ones")
    train = rows["train"]
    return rows, figures | {"train_answers": len(train), "good": sum(row["label"] for row in train) / len(train)}


def make_trainer(job: Job[config.Kto], worker: Worker, model: Any, tokenizer: Any, rows: Rows) -> Kto:
    """The trainer of ``model`` against the SFT model, with the order of its rows fixed."""
    training, adapted = job.training, job.training.adapter != "none"
    if hf.micro_batch(training, worker.world_size) < 2:
        raise ConfigurationError(
            f"batch_size {training.batch_size} leaves {worker.world_size} workers less than two answers each; kto pairs a"
            " micro-batch's prompts with each other's answers: raise batch_size, or lower runtime.workers"
        )
    order = hf.row_order(training, [_length(row) for row in rows["train"]], job.seed)
    steps = len(order) // training.batch_size
    arguments = hf.arguments(training, worker, job.scratch / "checkpoints", steps, job.seed)
    # a pair's two answers lie side by side in the table: in another order their prompts differ, and both kinds share a batch
    held_out = [rows["validation"][row] for row in hf.data_order(len(rows["validation"]), 1, 1, job.seed)]
    trainer = Kto(
        model=model,
        ref_model=None if adapted else load_causal_lm(job.sft, worker.device),
        peft_config=lora_config(model, training) if adapted else None,
        args=KTOConfig(
            **arguments,
            beta=training.beta,
            desirable_weight=training.desirable_weight,
            undesirable_weight=training.undesirable_weight,
        ),
        data_collator=Mismatched(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows["train"]),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal)],
    )
    trainer.order = order
    return trainer


def _labels(job: Job[config.Kto], tokenizer: Any, context: int) -> tuple[Rows, dict[str, float]]:
    """People's labels: their answers have ended."""
    table = read_table(job.pairs, LABELS)
    rows: Rows = {}
    counts: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        some, where = table[table["split"] == split], f"{job.pairs.name} ({split})"
        columns = [some[name] for name in ("prompt", "completion", "label")]
        found = shared_out(lambda labels: _encoded(labels, tokenizer), list(zip(*columns, strict=True)))
        policy = job.training.excess_length
        rows[split], counts[split] = lengths.fit_pairs(found, context, policy, where, ("completion_ids",))
        hf.refuse_empty(rows[split], where)
    train = rows["train"]
    tokens = {"prompt_tokens": "prompt_ids", "answer_tokens": "completion_ids"}
    for name, ids in tokens.items():
        counts["train"] |= lengths.quantiles(name, [len(row[ids]) for row in train])
    good = [len(row["completion_ids"]) for row in train if row["label"]]
    return rows, counts["train"] | {"chosen_tokens": sum(good) / max(len(good), 1)}


def _encoded(labels: Sequence[tuple[str, str, bool]], tokenizer: Any) -> list[dict[str, Any]]:
    asked, answered, good = zip(*labels, strict=True)
    prompts, answers = encode_prompts(tokenizer, asked), encode_completions(tokenizer, answered, [True] * len(labels))
    return [
        {"prompt_ids": prompt, "completion_ids": answer, "label": bool(label)}
        for prompt, answer, label in zip(prompts, answers, good, strict=True)
    ]


def _both(pair: dict[str, list[int]]) -> list[dict[str, Any]]:
    sides = (("chosen_ids", True), ("rejected_ids", False))
    return [{"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "label": label} for side, label in sides]


def _length(row: dict[str, Any]) -> int:
    return len(row["prompt_ids"]) + len(row["completion_ids"])
