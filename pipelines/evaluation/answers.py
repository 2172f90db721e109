"""The answers of one model to the held-out prompts: sampled, scored, one row an answer.

The policy, the SFT model, the base model and the reward model are in memory one after another, never together. Answers
are drawn row by row from seeds of their own, so neither batches nor the number of workers change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from pipelines.config import Generation
from pipelines.context import Worker, seed_for
from pipelines.data.tokens import decode, encode_prompt
from pipelines.evaluation.comparison import GREEDY, answer_letters
from pipelines.evaluation.samples import SAMPLES
from pipelines.models.generation import Answers, response_logprobs, sample
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.reward import load_reward, score

PHASES = 5
NAN = float("nan")


@dataclass(frozen=True)
class Job:
    """What a worker needs to answer and score: folders and settings. ``policy`` may be the SFT model itself."""

    policy: Path
    sft: Path
    base: Path
    reward: Path
    generation: Generation
    answers: int
    precision: Literal["float32", "bf16"]
    seed: int


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt."""

    id: str
    text: str


def answer(job: Job, prompts: Sequence[Prompt], worker: Worker) -> list[dict[str, Any]]:
    """Rows of SAMPLES without ``gold``, a prompt's answers side by side, in the order of the prompts."""
    tick = _Ticker(worker)

    # 1. sample: the greedy answer once, the lettered ones from seeds that every policy shares
    tokenizer = load_tokenizer(job.policy)
    asked = [encode_prompt(tokenizer, prompt.text) for prompt in prompts]
    policy = load_causal_lm(job.policy, worker.device)
    greedy = _drawn(job, policy, tokenizer, asked, [0] * len(asked), greedy=True)
    letters = answer_letters(job.answers)
    seeds = [seed_for(job.seed, "evaluate", prompt.id, letter) for prompt in prompts for letter in letters]
    repeated = [ids for ids in asked for _ in letters]
    drawn = _drawn(job, policy, tokenizer, repeated, seeds, greedy=False)
    tick("sampled")

    # 2. the policy's own log-probability and entropy, by the same computation as the references' (so KL(sft, sft) is 0)
    own, entropies = _scored(job, policy, repeated, drawn.tokens, job.generation.temperature)
    tick("policy")
    del policy

    # 3. the SFT model's log-probability of the same answers
    under_sft = own
    if job.policy != job.sft:
        under_sft, _ = _scored(job, load_causal_lm(job.sft, worker.device), repeated, drawn.tokens, job.generation.temperature)
    tick("sft")

    # 4. the base model's, as a reader of English that no preference has touched
    under_base, _ = _scored(job, load_causal_lm(job.base, worker.device), repeated, drawn.tokens, 1.0)
    tick("base")

    # 5. the reward model's score
    reward_model = load_reward(job.reward, job.sft, worker.device)
    rewards = score(reward_model, repeated, drawn.tokens, job.generation.batch_size, job.precision)
    tick("reward model")

    rows = []
    for index, prompt in enumerate(prompts):
        rows.append(_row(prompt, GREEDY, greedy, index, tokenizer))
        for offset, letter in enumerate(letters):
            i = index * len(letters) + offset
            text_tokens = len(drawn.tokens[i]) - int(drawn.ended[i])
            rows.append(
                _row(prompt, letter, drawn, i, tokenizer)
                | {
                    "reward": float(rewards[i]),
                    "logprob": math.fsum(own[i]),
                    "logprob_sft": math.fsum(under_sft[i]),
                    "base_nll": -math.fsum(under_base[i][:text_tokens]),
                    "entropy": math.fsum(entropies[i]) / len(entropies[i]),
                }
            )
    return rows


def as_table(rows: list[dict[str, Any]], judge: Callable[[list[str], list[str]], list[float]]) -> pd.DataFrame:
    """The rows as a SAMPLES table, each answer scored by the judge."""
    frame = pd.DataFrame(rows)
    frame["gold"] = [float(value) for value in judge(frame["prompt"].tolist(), frame["text"].tolist())]
    return frame[list(SAMPLES.columns)]


class _Ticker:
    """Counts the phases for the progress line."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.done = worker, 0

    def __call__(self, note: str) -> None:
        self.done += 1
        self.worker.journal.log(self.done, PHASES, note=note)


def _drawn(job: Job, model: Any, tokenizer: Any, asked: list[list[int]], seeds: list[int], greedy: bool) -> Answers:
    return sample(model, tokenizer, asked, job.generation, seeds, job.precision, greedy=greedy)


def _scored(
    job: Job, model: Any, asked: list[list[int]], answers: list[list[int]], temperature: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probability and entropy of every token of every answer, in nats."""
    logprobs, entropies = response_logprobs(model, asked, answers, temperature, job.precision, job.generation.batch_size)
    return [values.tolist() for values in logprobs], [values.tolist() for values in entropies]


def _row(prompt: Prompt, letter: str, answers: Answers, index: int, tokenizer: Any) -> dict[str, Any]:
    """The columns that every answer has; the scores of a greedy one stay NaN."""
    tokens, ended = answers.tokens[index], answers.ended[index]
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "answer": letter,
        "text": decode(tokenizer, tokens),
        "tokens": len(tokens),
        "ended": ended,
        "reward": NAN,
        "logprob": NAN,
        "logprob_sft": NAN,
        "base_nll": NAN,
        "base_tokens": len(tokens) - int(ended),
        "entropy": NAN,
    }
