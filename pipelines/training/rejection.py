"""Rejection sampling: of n answers of the SFT model to each prompt the best by the reward, then SFT on those (TRL's SFTTrainer).

What it aims at is the policy that draws n answers and gives the best of them: without ties it is log n - (n - 1) / n nats from
the SFT model (``evaluation.optimisation.best_of_kl``), however strange the reward.

Papers: Nakano et al. 2021, section 3.2 (best of n); Dong et al. 2023, "RAFT", algorithm 1; Touvron et al. 2023, "Llama 2",
section 3.2.3. Axes: B prompts of a block, n answers of each (neighbours).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig

from pipelines import config
from pipelines.context import Worker, seed_for
from pipelines.data.tables import read_table, write_json
from pipelines.errors import DataError
from pipelines.models.adapters import add_adapter
from pipelines.models.generation import sample
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import hf
from pipelines.training.offline import write_policy
from pipelines.training.rewards import OpenTerm, Row, Term, open_terms
from pipelines.training.sft import IGNORED, Sft


@dataclass(frozen=True)
class Sampling:
    """What a worker needs to answer prompts and to choose among the answers."""

    sft: Path
    rewards: tuple[Term, ...]
    params: config.Rejection
    seed: int


@dataclass(frozen=True)
class Job:
    """Paths and settings: the SFT model's folder, the table of best answers, where results and checkpoints go."""

    sft: Path
    best: Path
    out: Path
    scratch: Path
    training: config.Rejection
    seed: int


def best_answers(job: Sampling, prompts: Sequence[tuple[str, Row]], worker: Worker) -> list[dict[str, Any]]:
    """For each (id, tokens), in their order, the best of its answers. An answer depends on its prompt and number only.

    A row has ``prompt_ids``, ``answer_ids`` (EOS where it was emitted), ``score``, ``score_mean`` of all n, and ``ended``.
    Raises DataError for a score that is not a number.
    """
    tokenizer, model = load_tokenizer(job.sft), load_causal_lm(job.sft, worker.device)
    terms = open_terms(job.rewards, tokenizer, worker.device)
    params, n, rows = job.params, job.params.answers, list[dict[str, Any]]()
    for start in range(0, len(prompts), params.generation.batch_size):
        block = prompts[start : start + params.generation.batch_size]
        asked = [tokens for _, tokens in block for _ in range(n)]
        seeds = [seed_for(job.seed, "rejection", id, number) for id, _ in block for number in range(n)]
        drawn = sample(model, tokenizer.eos_token_id, tokenizer.pad_token_id, asked, params.generation, seeds, params.precision)
        scores = scores_of(terms, asked, drawn.tokens, drawn.ended)
        for place, (_, tokens) in enumerate(block):
            own = range(place * n, (place + 1) * n)
            best = max(own, key=scores.__getitem__)
            rows.append(
                {
                    "prompt_ids": tokens,
                    "answer_ids": drawn.tokens[best],
                    "score": scores[best],
                    "score_mean": math.fsum(scores[row] for row in own) / n,
                    "ended": drawn.ended[best],
                }
            )
        worker.journal.log(start + len(block), len(prompts), {"score": rows[-1]["score"]})
    return rows


def scores_of(terms: Sequence[OpenTerm], prompts: list[Row], answers: list[Row], ended: list[bool]) -> list[float]:
    """The weighted sum of the terms, one an answer."""
    total = [0.0] * len(answers)
    for term in terms:
        found = term.score(prompts, answers, ended)
        bad = [value for value in found if not math.isfinite(value)]
        if bad:
            raise DataError(f"rewards: {term.name} gave {bad[0]} for {len(bad)} of {len(found)} answers; mend the reward")
        total = [sum_ + term.weight * value for sum_, value in zip(total, found, strict=True)]
    return total


def train(job: Job, worker: Worker) -> None:
    """Beats: rows, model, trainer, training, results (rank 0 writes them below ``job.out``)."""
    # 1. the best answers as they were drawn: one that was cut has no EOS to learn
    tokenizer, table = load_tokenizer(job.sft), read_table(job.best)
    rows = [labelled(list(map(int, p)), list(map(int, a))) for p, a in zip(table["prompt_ids"], table["answer_ids"], strict=True)]

    # 2. the policy, with fresh adapters where asked
    torch.manual_seed(job.seed)
    model = add_adapter(load_causal_lm(job.sft, worker.device), job.training)
    hf.refuse_empty(rows, "best answers")
    longest = max(len(row["input_ids"]) for row in rows)

    # 3. the trainer
    order = hf.data_order(len(rows), job.training.num_train_epochs, job.training.batch_size, job.seed)
    steps = len(order) // job.training.batch_size
    arguments = hf.arguments(job.training, worker, job.scratch / "checkpoints", steps, job.seed)
    trainer = Sft(
        model=model,
        args=SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[hf.JournalCallback(worker.journal)],
    )
    trainer.order = order

    # 4. training
    hf.resume_and_train(trainer, job.training.precision, worker, longest)

    # 5. results
    if worker.rank == 0:
        history = write_policy(trainer, tokenizer, job.out)
        figures = {
            "loss": float(history["loss"].dropna().iloc[-1]),
            "best_score": float(table["score"].mean()),
            "sft_score": float(table["score_mean"].mean()),
            "eos_rate": float(table["ended"].mean()),
        }
        write_json(job.out / "metrics.json", figures | {"prompts": len(rows), "steps": trainer.state.global_step})


def labelled(prompt: Row, answer: Row) -> dict[str, list[int]]:
    """``input_ids`` [T] and ``labels`` [T]: the answer's tokens, -100 on the prompt."""
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}
