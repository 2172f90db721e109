"""How much the wording of a prompt matters: POSIX (Chatterjee et al. 2024, "POSIX: A Prompt Sensitivity Index").

Legend of shapes: N phrasings of one intent. Log-probabilities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from pipelines.config import Generation, Precision
from pipelines.context import Worker
from pipelines.data.tokens import encode_prompt
from pipelines.evaluation.reading import context_of
from pipelines.models.generation import response_logprobs, sample
from pipelines.models.loading import load_causal_lm, load_tokenizer


@dataclass(frozen=True)
class Job:
    """A model and how it answers."""

    model: Path
    generation: Generation
    precision: Precision


def posix(logprobs: ArrayLike, lengths: ArrayLike) -> float:
    """psi = 1 / (N (N - 1)) sum_i sum_j |log P(y_j | x_i) - log P(y_j | x_j)| / L_j (equation 1); 0 = the wording is nothing.

    ``logprobs`` [N, N]: log P(y_j | x_i) in row i and column j, where y_j is the answer to phrasing x_j; ``lengths`` [N]: its
    tokens. The authors' released code computes something else.
    """
    table, tokens = np.asarray(logprobs, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    n = len(table)
    if table.shape != (n, n) or tokens.shape != (n,) or n < 2:
        raise ValueError(f"logprobs {table.shape} and lengths {tokens.shape}: expected [N, N] and [N] with N of 2 or more")
    return float((np.abs(table - np.diag(table)) / tokens).sum() / (n * (n - 1)))


def ask(job: Job, intents: Sequence[list[str]], worker: Worker) -> list[float]:
    """POSIX of every intent, a list of its phrasings; those that do not fit into the model's context are left out.

    The answers are greedy, EOS is one of their tokens; log-probabilities are at temperature 1.
    """
    tokenizer, model = load_tokenizer(job.model), load_causal_lm(job.model, worker.device)
    room = context_of(model) - job.generation.max_new_tokens
    asked = [[encode_prompt(tokenizer, text) for text in texts] for texts in intents]
    kept = [phrasings for phrasings in asked if len(phrasings) > 1 and max(map(len, phrasings)) <= room]
    flat = [prompt for phrasings in kept for prompt in phrasings]
    eos, pad, size = tokenizer.eos_token_id, tokenizer.pad_token_id, job.generation.batch_size
    said = sample(model, eos, pad, flat, job.generation, [], job.precision, greedy=True).tokens

    found: list[float] = []
    answers = iter(said)
    groups = [(phrasings, [next(answers) for _ in phrasings]) for phrasings in kept]
    prompts = [prompt for phrasings, own in groups for prompt in phrasings for _ in own]
    read = [answer for phrasings, own in groups for _ in phrasings for answer in own]
    logprobs = response_logprobs(model, prompts, read, 1.0, job.precision, size)
    sums = iter([math.fsum(row.tolist()) for row in logprobs])
    for phrasings, own in groups:
        table = [[next(sums) for _ in own] for _ in phrasings]
        found.append(posix(table, [len(answer) for answer in own]))
    worker.journal.log(1, 1, note="phrasings")
    return found
