"""The answers of one model to the held-out prompts: sampled, scored, one row an answer.

The policy, the SFT model, the base model and the reward model are in memory one after another, never together. Answers
are drawn row by row from seeds of their own, so neither batches nor the number of workers change them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd

from pipelines.config import Generation
from pipelines.context import Worker, seed_for
from pipelines.data.tokens import decode, encode_prompts
from pipelines.evaluation.comparison import GREEDY, answer_letters
from pipelines.evaluation.samples import SAMPLES
from pipelines.models.generation import batches_of_like_length, response_logprobs, sample
from pipelines.models.halves import half_linears
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.reward import RewardModel, load_members, score_members

NAN = float("nan")
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What a worker needs to answer and score: folders and settings. ``policy`` may be the SFT model itself.

    The first ``known`` of the ``answers`` are left out, because they are there already; ``brief`` leaves out the greedy answer
    and the base model's reading.
    """

    policy: Path
    sft: Path
    base: Path
    reward: Path
    generation: Generation
    answers: int
    precision: Literal["float32", "bf16"]
    seed: int
    known: int = 0
    brief: bool = False


@dataclass(frozen=True)
class Prompt:
    """A held-out prompt."""

    id: str
    text: str


def answer(job: Job, prompts: Sequence[Prompt], worker: Worker) -> list[dict[str, Any]]:
    """Rows of SAMPLES without ``gold``, a prompt's answers side by side, in the order of the prompts."""
    tokenizer = load_tokenizer(job.policy)
    letters = answer_letters(job.answers)[job.known :]
    asked = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    repeated = [ids for ids in asked for _ in letters]
    work = _Work(job, worker, asked, repeated, tokenizer)

    # 1. sample: the greedy answer once, the lettered ones from seeds that every policy shares
    policy = load_causal_lm(job.policy, worker.device)
    greedy = [] if job.brief else work.drawn(policy, asked, seeds=None)
    seeds = [seed_for(job.seed, "evaluate", prompt.id, letter) for prompt in prompts for letter in letters]
    drawn = work.drawn(policy, repeated, seeds)
    del policy

    # 2. the SFT model's log-probability of the same answers; the policy's own came with them (so KL(sft, sft) is 0)
    sft = [answer.logprobs for answer in drawn]
    if job.policy != job.sft:
        sft = work.scored(load_causal_lm(job.sft, worker.device), drawn, job.generation.temperature)

    # 3. the base model's, as a reader of English that no preference has touched
    base = [] if job.brief else work.scored(load_causal_lm(job.base, worker.device), drawn, temperature=1.0)

    # 4. the reward model's score
    rewards = work.rewarded(load_members(job.reward, job.sft, worker.device), drawn)

    rows = []
    for index, prompt in enumerate(prompts):
        if not job.brief:
            rows.append(_row(prompt, GREEDY, greedy[index], tokenizer))
        for i, letter in enumerate(letters, start=index * len(letters)):
            scores = {
                "reward": rewards[i],
                "logprob": math.fsum(drawn[i].logprobs),
                "logprob_sft": math.fsum(sft[i]),
                "base_nll": NAN if job.brief else -math.fsum(base[i][: drawn[i].text_tokens]),
                "entropy": math.fsum(drawn[i].entropies) / len(drawn[i].entropies),
            }
            rows.append(_row(prompt, letter, drawn[i], tokenizer) | scores)
    return rows


def as_table(rows: list[dict[str, Any]], judge: Callable[[list[str], list[str]], list[float]]) -> pd.DataFrame:
    """The rows as a SAMPLES table, each answer scored by the judge."""
    frame = pd.DataFrame(rows)
    frame["gold"] = [float(value) for value in judge(frame["prompt"].tolist(), frame["text"].tolist())]
    return frame[list(SAMPLES.columns)]


@dataclass(frozen=True)
class _Drawn:
    """One answer: its tokens with EOS where it was emitted; their log-probabilities and entropies, in nats."""

    tokens: list[int]
    ended: bool
    logprobs: list[float]
    entropies: list[float]

    @property
    def text_tokens(self) -> int:
        """Tokens before EOS."""
        return len(self.tokens) - int(self.ended)


class _Work:
    """Runs a model over rows in batches of like length, a line of the journal each; results in the order of the rows."""

    def __init__(self, job: Job, worker: Worker, asked: list[list[int]], repeated: list[list[int]], tokenizer: Any) -> None:
        self.job, self.worker, self.asked, self.repeated, self.tokenizer = job, worker, asked, repeated, tokenizer
        self.size = job.generation.batch_size
        self.read = math.ceil(self.size / 2)  # a row read is many tokens, enough for the products, and fewer rows pad less
        drawn, greedy = math.ceil(len(repeated) / self.size), 0 if job.brief else math.ceil(len(asked) / self.size)
        readings = (job.policy != job.sft) + (not job.brief)
        read = readings * math.ceil(len(asked) / self.read) + math.ceil(len(repeated) / self.read)
        self.done, self.total = 0, greedy + drawn + read

    def drawn(self, model: Any, asked: list[list[int]], seeds: list[int] | None) -> list[_Drawn]:
        """Answers to ``asked``: greedy without seeds."""

        def draw(rows: list[int]) -> list[_Drawn]:
            eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            prompts = [asked[row] for row in rows]
            row_seeds = [seeds[row] for row in rows] if seeds else []
            how = self.job.generation, row_seeds, self.job.precision
            made = sample(model, eos, pad, prompts, *how, greedy=not seeds, read=True)
            return [_Drawn(*answer) for answer in zip(made.tokens, made.ended, made.own, made.entropies, strict=True)]

        lengths = [len(prompt) for prompt in asked]
        return self._batched(lengths, self.size, draw, "greedy answers" if seeds is None else "sampled answers")

    def scored(self, model: Any, drawn: list[_Drawn], temperature: float) -> list[list[float]]:
        """The log-probability that a language model gives each token of the answers, in nats."""

        each = len(drawn) // len(self.asked)

        def read(prompts: list[int]) -> list[list[list[float]]]:
            rows = [prompt * each + number for prompt in prompts for number in range(each)]
            asked, answers = [self.repeated[row] for row in rows], [drawn[row].tokens for row in rows]
            found = response_logprobs(model, asked, answers, temperature, self.job.precision, self.read)
            return [[one.tolist() for one in found[start : start + each]] for start in range(0, len(rows), each)]

        with half_linears(model, self.job.precision):  # once, not a batch at a time
            of_prompts = self._batched([len(prompt) for prompt in self.asked], self.read, read, "log-probabilities")
        return [logprobs for answers in of_prompts for logprobs in answers]

    def rewarded(self, members: list[RewardModel], drawn: list[_Drawn]) -> list[float]:
        """The reward model's scores of the answers; an ensemble's mean."""

        def judge(rows: list[int]) -> list[float]:
            asked, answers = [self.repeated[row] for row in rows], [drawn[row].tokens for row in rows]
            return score_members(members, asked, answers, self.read, self.job.precision).mean(0).tolist()

        lengths = [len(asked) + len(answer.tokens) for asked, answer in zip(self.repeated, drawn, strict=True)]
        return self._batched(lengths, self.read, judge, "reward model")

    def _batched(self, lengths: list[int], size: int, function: Callable[[list[int]], list[T]], note: str) -> list[T]:
        results: dict[int, T] = {}
        for rows in batches_of_like_length(lengths, size):
            results |= dict(zip(rows, function(rows), strict=True))
            self.done += 1
            self.worker.journal.log(self.done, self.total, note=note)
        return [results[row] for row in range(len(lengths))]


def _row(prompt: Prompt, letter: str, drawn: _Drawn, tokenizer: Any) -> dict[str, Any]:
    """The columns that every answer has; the scores of a greedy one stay NaN."""
    return {
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "answer": letter,
        "text": decode(tokenizer, drawn.tokens),
        "tokens": len(drawn.tokens),
        "ended": drawn.ended,
        "reward": NAN,
        "logprob": NAN,
        "logprob_sft": NAN,
        "base_nll": NAN,
        "base_tokens": drawn.text_tokens,
        "entropy": NAN,
    }
