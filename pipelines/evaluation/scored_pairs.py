"""The reward model's scores of the held-out pairs, and of their chosen answers with filler appended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import Precision
from pipelines.context import Worker
from pipelines.evaluation.reading import context_of, tokens_of
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward import load_members, score_members

FILLER = " And so on, and so on, and so on."
"""Says nothing: a reward model that scores it up can be gamed by length."""


@dataclass(frozen=True)
class Job:
    """The models and how to run them."""

    sft: Path
    reward: Path
    batch_size: int
    precision: Precision


def score_pairs(job: Job, pairs: Sequence[dict[str, Any]], worker: Worker) -> list[dict[str, Any]]:
    """Rows of SCORED_PAIRS for rows of PAIRS, in their order. A text that stands in several pairs is scored once."""
    tokenizer, members = load_tokenizer(job.sft), load_members(job.reward, job.sft, worker.device)
    context = context_of(members[0])
    asked: dict[tuple[str, str, bool], tuple[list[int], list[int]]] = {}
    for pair in pairs:
        for text in _texts(pair):
            if text not in asked:
                prompt, answer, ended = text
                asked[text] = tokens_of(tokenizer, prompt, answer, context, ended)
    prompts, answers = [tokens[0] for tokens in asked.values()], [tokens[1] for tokens in asked.values()]
    scores = score_members(members, prompts, answers, job.batch_size, job.precision).mean(0).tolist() if asked else []
    worth = dict(zip(asked, scores, strict=True))
    worker.journal.log(1, 1, note="held-out pairs")
    rows = []
    for pair in pairs:
        chosen, rejected, filled = _texts(pair)
        kept = {name: pair[name] for name in ("id", "prompt_id", "judge", "group", "source", "margin")}
        lengths = {"chosen_tokens": len(asked[chosen][1]), "rejected_tokens": len(asked[rejected][1])}
        rewards = {"chosen_reward": worth[chosen], "rejected_reward": worth[rejected], "filler_reward": worth[filled]}
        rows.append(kept | lengths | rewards)
    return rows


def _texts(pair: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Prompt, answer and whether it ended: the chosen one, the rejected one, the chosen one with filler."""
    prompt, chosen, ended = pair["prompt"], pair["chosen"], bool(pair["chosen_ended"])
    return [(prompt, chosen, ended), (prompt, pair["rejected"], bool(pair["rejected_ended"])), (prompt, chosen + FILLER, ended)]
