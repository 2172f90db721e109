"""The tables that evaluation writes: a model's answers to the held-out prompts, and the reward model's held-out pairs."""

from __future__ import annotations

import pandas as pd
import pandera.pandas as pa


def _number(nullable: bool = False) -> pa.Column:
    return pa.Column(float, nullable=nullable)


def _string() -> pa.Column:
    return pa.Column(pd.StringDtype(na_value=float("nan")))


SAMPLES = pa.DataFrameSchema(
    {
        "prompt_id": _string(),
        "prompt": _string(),
        "answer": _string(),
        "text": _string(),
        "tokens": pa.Column(int, pa.Check.ge(1)),
        "ended": pa.Column(bool),
        "gold": _number(),
        "reward": _number(nullable=True),
        "logprob": _number(nullable=True),
        "logprob_sft": _number(nullable=True),
        "base_nll": _number(nullable=True),
        "base_tokens": pa.Column(int, pa.Check.ge(0)),
        "entropy": _number(nullable=True),
    },
    name="samples",
    strict=True,
    ordered=True,
    unique=["prompt_id", "answer"],
)
"""``answer`` is a letter or ``greedy``; ``tokens`` counts EOS. ``logprob`` and ``logprob_sft``: the answer's log-probability
with its EOS under the model that gave it and under SFT, in nats. ``base_nll``: negative log-likelihood in nats of the
``base_tokens`` tokens before EOS under the base model (which knows nothing of our EOS). ``entropy``: mean over the answer's
positions, in nats a token. The greedy answer is judged only: its other scores are NaN."""

SCORED_PAIRS = pa.DataFrameSchema(
    {
        **{name: _string() for name in ("id", "prompt_id", "judge", "group", "source")},
        "margin": _number(nullable=True),
        "chosen_tokens": pa.Column(int, pa.Check.ge(1)),
        "rejected_tokens": pa.Column(int, pa.Check.ge(1)),
        "chosen_reward": _number(),
        "rejected_reward": _number(),
        "filler_reward": _number(),
    },
    name="scored_pairs",
    strict=True,
    ordered=True,
)
"""``margin``: by how much the judge or a person found the chosen answer better, NaN where unknown. ``filler_reward``: the
score of the chosen answer with ``scored_pairs.FILLER`` behind it. An ensemble's scores are its mean."""
