"""Answers as texts, as models see them: pooled hidden states, and the scores of several reward models.

Axes: N answers or pairs, M models, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipelines.config import Precision
from pipelines.context import Worker
from pipelines.data.tokens import encode_completion, encode_prompt
from pipelines.models.loading import autocast, load_tokenizer
from pipelines.models.reward import Pooling, collate, load_reward, new_reward, pool, score

Answer = tuple[str, str, bool]
"""A prompt, an answer to it, and whether the answer ended by itself."""


@dataclass(frozen=True)
class Job:
    """The SFT model, the folders of the reward models that score, and what a head would sit on (``features`` alone)."""

    sft: Path
    folders: tuple[Path, ...]
    batch_size: int
    precision: Precision
    pooling: Pooling = "mean"
    layers: int = 0


@torch.no_grad()
def features(job: Job, answers: Sequence[Answer], worker: Worker) -> list[np.ndarray]:
    """What a reward model's head would begin with: the SFT model's pooled hidden states [H] of each answer."""
    tokenizer = load_tokenizer(job.sft)
    model = new_reward(job.sft, job.pooling, job.layers, worker.device)
    rows = _tokens(tokenizer, answers, model.config.max_position_embeddings)
    found = []
    for start in range(0, len(rows), job.batch_size):
        batch = {name: value.to(worker.device) for name, value in collate(rows[start : start + job.batch_size]).items()}
        with autocast(job.precision, worker.device):
            hidden = model.trunk(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        found += list(pool(hidden.last_hidden_state.float(), batch["answer_mask"], job.pooling).cpu().numpy())
        worker.journal.log(min(start + job.batch_size, len(rows)), len(rows), note="features")
    return found


def scores(job: Job, answers: Sequence[Answer], worker: Worker) -> list[list[float]]:
    """The score of each answer by each of the models, in the order of their folders."""
    models = [load_reward(folder, job.sft, worker.device) for folder in job.folders]
    rows = _tokens(load_tokenizer(job.sft), answers, models[0].config.max_position_embeddings)
    prompts, said = [row[0] for row in rows], [row[1] for row in rows]
    columns = [score(model, prompts, said, job.batch_size, job.precision) for model in models]
    worker.journal.log(1, 1, note="scores of several models")
    return [list(row) for row in zip(*columns, strict=True)]


def answers_of(pairs: pd.DataFrame) -> list[Answer]:
    """The distinct answers of a table of pairs, in the order of their first appearance."""
    return list(dict.fromkeys(answer for both in zip(*sides_of(pairs), strict=True) for answer in both))


def sides_of(pairs: pd.DataFrame) -> tuple[list[Answer], list[Answer]]:
    """The chosen and the rejected answer of every pair."""
    chosen, rejected = (
        list(zip(pairs["prompt"], pairs[side], pairs[f"{side}_ended"].astype(bool), strict=True))
        for side in ("chosen", "rejected")
    )
    return chosen, rejected


def _tokens(tokenizer: Any, answers: Sequence[Answer], context: int) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers within the context: a prompt loses its beginning. An answer has one token at least."""
    rows = []
    for prompt, answer, ended in answers:
        said = (encode_completion(tokenizer, answer, eos=ended) or [tokenizer.eos_token_id])[: context - 1]
        rows.append((encode_prompt(tokenizer, prompt)[-(context - len(said)) :], said))
    return rows
