"""What the offline methods share (dpo, orpo, kto): their job, pairs that fit the model's context, and what they leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd

from pipelines import config
from pipelines.data import lengths
from pipelines.data.tables import write_json
from pipelines.models.adapters import is_adapted, merge, save_adapter
from pipelines.models.loading import save_model
from pipelines.models.soft_prompt import trains_prompt
from pipelines.training import hf
from pipelines.training.pairs import Row, read_rows, token_counts
from pipelines.training.results import SFT

SPLITS = ("train", "validation")
Entry = TypeVar("Entry", bound=config.Offline)


@dataclass(frozen=True)
class Job(Generic[Entry]):
    """Paths and settings: the SFT model's folder, the table to learn from, where results and checkpoints go."""

    sft: Path
    pairs: Path
    out: Path
    scratch: Path
    training: Entry
    seed: int


def fitting_pairs(job: Job[Entry], tokenizer: Any, context: int) -> tuple[dict[str, list[Row]], dict[str, float]]:
    """The tokenised pairs of training and validation within the context, and the figures of the training pairs.

    Raises DataError where a pair is too long (``excess_length: raise``) or a split is empty.
    """
    training = job.training
    rows = read_rows(job.pairs, tokenizer, training.pairs_per_prompt, training.ended_only)
    kept, counts = {}, {}
    for split in SPLITS:
        where = f"{job.pairs.name} ({split})"
        kept[split], counts[split] = lengths.fit_pairs(rows[split], context, training.excess_length, where)
        hf.refuse_empty(kept[split], where)
    train = kept["train"]
    tokens = sum(len(row["chosen_ids"]) for row in train) / len(train)
    return kept, counts["train"] | token_counts(train) | {"train_pairs": len(train), "chosen_tokens": tokens}


def write_policy(trainer: hf.Frame, tokenizer: Any, out: Path) -> pd.DataFrame:
    """Write the history, the adapter and the merged model below ``out``; give the history back."""
    history = hf.write_history(trainer, out)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if is_adapted(model) or trains_prompt(model):
        save_adapter(model, out / "adapter", SFT)
    save_model(merge(model), tokenizer, out / "model")
    return history


def write(
    job: Job[Entry],
    trainer: hf.Frame,
    tokenizer: Any,
    held_out: dict[str, float],
    figures: dict[str, float],
    reported: Sequence[str],
) -> None:
    """Write the policy and metrics.json: the last training value and the held-out one (``eval_NAME``) of what is reported.

    A figure that was never logged (a batch of good answers alone has no margin) is left out.
    """
    history = write_policy(trainer, tokenizer, job.out)
    last = {name: float(history[name].dropna().iloc[-1]) for name in reported if name in history}
    found = {f"eval_{name}": held_out[f"eval_{name}"] for name in reported if f"eval_{name}" in held_out}
    write_json(job.out / "metrics.json", last | found | figures | {"steps": trainer.state.global_step})
