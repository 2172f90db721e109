"""The language of a model: how well it expects held-out demonstrations, what it copies, whether it does what it was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.config import Precision
from pipelines.context import Worker
from pipelines.data.grams import grams
from pipelines.data.texts import normal
from pipelines.evaluation.comparison import GREEDY
from pipelines.evaluation.metrics import exact_match, rouge_l
from pipelines.evaluation.reading import context_of, tokens_of
from pipelines.models.generation import response_logprobs
from pipelines.models.loading import load_causal_lm, load_tokenizer

WIDTH = 5
"""Words of a run that counts as copied: shorter ones are shared by chance."""


@dataclass(frozen=True)
class Job:
    """A model and how to run it."""

    model: Path
    batch_size: int
    precision: Precision


def read_texts(job: Job, texts: Sequence[tuple[str, str]], worker: Worker) -> list[tuple[float, int]]:
    """For every prompt and answer the answer's negative log-likelihood in nats, and its tokens; EOS is part of it."""
    tokenizer, model = load_tokenizer(job.model), load_causal_lm(job.model, worker.device)
    read = [tokens_of(tokenizer, prompt, answer, context_of(model)) for prompt, answer in texts]
    prompts, answers = [tokens[0] for tokens in read], [tokens[1] for tokens in read]
    logprobs = response_logprobs(model, prompts, answers, 1.0, job.precision, job.batch_size)
    worker.journal.log(1, 1, note="held-out texts")
    return [(-math.fsum(row.tolist()), len(row)) for row in logprobs]


def copied(answers: Sequence[str], training: Sequence[str], width: int = WIDTH) -> float:
    """The share of the answers' runs of ``width`` words that stand in the training text; 0 where there is no such run."""
    ours, theirs = (_long_enough(texts, width) for texts in (answers, training))
    if not ours or not theirs:
        return 0.0
    return float(np.isin(grams(ours, width)[0], np.unique(grams(theirs, width)[0])).mean())


def following(samples: pd.DataFrame, prompts: pd.DataFrame, demonstrations: pd.DataFrame) -> dict[str, float]:
    """The greedy answers against the references: exact match and ROUGE-L with its standard error, means over prompts.

    Of prompts in a template (or of a task) that no training demonstration has, the same under ``..._unseen_templates``
    (``..._unseen_tasks``) with their number: what was learnt of instructions, not of these (Wei et al. 2021, section 3).
    """
    greedy = samples[samples["answer"] == GREEDY].merge(prompts, left_on="prompt_id", right_on="id", suffixes=("", "_asked"))
    pairs = list(zip(greedy["text"], greedy["reference"], strict=True))
    greedy = greedy.assign(exact=[exact_match(*pair) for pair in pairs], rouge=[rouge_l(*pair) for pair in pairs])
    trained = demonstrations[demonstrations["split"] == "train"]
    found = _followed(greedy, "")
    for column, name in (("template", "templates"), ("task", "tasks")):
        if column in greedy and column in trained:
            unseen = greedy[greedy[column].notna() & ~greedy[column].isin(trained[column])]
            found |= _followed(unseen, f"_unseen_{name}") | {f"prompts_unseen_{name}": len(unseen)} if len(unseen) else {}
    return found


def _followed(rows: pd.DataFrame, suffix: str) -> dict[str, float]:
    return {
        f"exact_match{suffix}": float(rows["exact"].mean()),
        f"rouge_l{suffix}": float(rows["rouge"].mean()),
        f"rouge_l_se{suffix}": float(rows["rouge"].std() / math.sqrt(len(rows))),
    }


def _long_enough(texts: Sequence[str], width: int) -> list[str]:
    normalised = [normal(text) for text in texts]
    return [text for text in normalised if text.count(" ") >= width - 1]
