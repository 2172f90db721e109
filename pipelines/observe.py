"""``python -m pipelines observe``: a window of served replies against the evaluation of the model that gave them.

Reads     ``--log`` (pipelines/data/replies.py), ``--model``: the champion's folder with its ``evaluation/``; ``--sft`` and
          ``--reward`` where they are those it was trained with; ``--previous``: the model before it
Writes    ``--out``: every finding, the level, and, on an alarm, the win rate of the served replies over the previous model's
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from pipelines import config
from pipelines.context import seed_for
from pipelines.data.replies import read_replies
from pipelines.data.tables import read_table, write_json
from pipelines.data.tokens import encode_completions, encode_prompts
from pipelines.evaluation.comparison import outcomes, sampled
from pipelines.evaluation.drift import Finding, Floats, findings, level_of, noise_of
from pipelines.evaluation.metrics import bootstrap_interval, repetition
from pipelines.evaluation.samples import SAMPLES
from pipelines.judges import make_judge
from pipelines.models.generation import batches_of_like_length, response_logprobs, sample
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.policy import pack, response_states
from pipelines.models.reward import load_reward, score

BATCH = 64
ANSWERED = 200
"""Prompts of a window that the previous model answers after an alarm."""
REFUSALS = ("i cannot", "i can't", "i can not", "i am unable", "i'm unable", "i'm sorry, but", "i am sorry, but", "as an ai")


def main(arguments: Sequence[str], root: Path) -> None:
    """Observe and write."""
    parser = argparse.ArgumentParser(prog="python -m pipelines observe")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--after", default="", help="replies up to this time were judged before")
    for name in ("model", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("sft", "reward", "previous"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args(arguments)
    params = config.load()
    torch.set_num_threads(params.runtime.threads)
    replies = read_replies(options.log)
    fresh = replies["time"] > pd.Timestamp(options.after) if options.after else replies["version"] != ""
    window = replies[fresh & (replies["version"] == options.version)].tail(params.monitor.window).reset_index(drop=True)
    result: dict[str, Any] = {"rows": len(window), "level": "none", "findings": [], "decay": None}
    if len(window) == params.monitor.window:
        reference = read_table(options.model / "evaluation" / "samples.parquet", SAMPLES)
        models = Models(options.model, options.sft, options.reward)
        found = observed(models, sampled(reference), window, params)
        result |= {"level": level_of(found), "findings": [asdict(finding) for finding in found]}
        votes = _votes(window)
        if votes and votes["interval"][1] < 0.5:
            result["level"] = "alarm"
        result |= {"votes": votes, "until": window["time"].iloc[-1].isoformat()}
        if result["level"] == "alarm" and options.previous:
            result["decay"] = decay(options.previous, window, params)
    write_json(options.out, result)


class Models:
    """The champion, and the models that its evaluation was scored with where they are at hand."""

    def __init__(self, folder: Path, sft: Path | None, reward: Path | None) -> None:
        self.tokenizer, self.policy = load_tokenizer(folder), load_causal_lm(folder)
        self.sft = load_causal_lm(sft) if sft else None
        self.reward = load_reward(reward, sft) if reward and sft else None

    @torch.no_grad()
    def signals(self, prompts: list[str], replies: list[str]) -> tuple[dict[str, Floats], Floats]:
        """What can be said of each reply [N], and its embedding [N, H]: the mean of the champion's own last hidden states.

        ``kl``: log-probability under the champion minus under SFT, in nats; ``refusal`` and ``repetition``: shares.
        """
        asked = encode_prompts(self.tokenizer, prompts)
        answers = encode_completions(self.tokenizer, replies, [True] * len(replies))
        found = {
            "prompt_tokens": np.array([len(ids) for ids in asked], dtype=np.float64),
            "reply_tokens": np.array([len(ids) for ids in answers], dtype=np.float64),
            "refusal": np.array([float(is_refusal(text)) for text in replies]),
            "repetition": np.array([repetition([text]) for text in replies]),
        }
        if self.sft is not None:
            ours, theirs = (self._logprobs(model, asked, answers) for model in (self.policy, self.sft))
            found["kl"] = ours - theirs
        if self.reward is not None:
            found["reward"] = np.array(score(self.reward, asked, answers, BATCH, "float32"))
        return found, self._embedded(asked, answers)

    def _logprobs(self, model: Any, asked: list[list[int]], answers: list[list[int]]) -> Floats:
        logprobs = response_logprobs(model, asked, answers, 1.0, "float32", BATCH)
        return np.array([float(row.sum()) for row in logprobs])

    def _embedded(self, asked: list[list[int]], answers: list[list[int]]) -> Floats:
        rows: dict[int, Floats] = {}
        for chosen in batches_of_like_length([len(a) + len(b) for a, b in zip(asked, answers, strict=True)], BATCH):
            packed = pack([asked[row] for row in chosen], [answers[row] for row in chosen])
            for row, states in zip(chosen, response_states(self.policy, packed).split(packed.lengths), strict=True):
                rows[row] = states.double().mean(dim=0).numpy()
        return np.stack([rows[row] for row in range(len(asked))])


def observed(models: Models, reference: pd.DataFrame, window: pd.DataFrame, params: config.Params) -> list[Finding]:
    """Every finding on a window; reference and window go through the same computation."""
    ours, ours_embedded = models.signals(reference["prompt"].tolist(), reference["text"].tolist())
    theirs, theirs_embedded = models.signals(window["prompt"].tolist(), window["reply"].tolist())
    clusters = reference["prompt_id"].tolist()
    seed, settings = seed_for(params.seed, "monitor"), params.monitor
    noise = noise_of(ours, clusters, ours_embedded, len(window), settings.resamples, seed)
    return findings(ours, theirs, clusters, (ours_embedded, theirs_embedded), noise, settings, seed)


def decay(previous: Path, window: pd.DataFrame, params: config.Params) -> dict[str, Any]:
    """Win rate of the served replies over the previous model's on the window's newest prompts, by the judge."""
    tokenizer, model = load_tokenizer(previous), load_causal_lm(previous)
    rows = window.drop_duplicates("prompt", keep="last").tail(ANSWERED)
    prompts, served = rows["prompt"].tolist(), rows["reply"].tolist()
    seeds = [seed_for(params.seed, "decay", prompt) for prompt in prompts]
    asked = encode_prompts(tokenizer, prompts)
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    drawn = sample(model, *ids, asked, params.evaluate.generation, seeds, params.evaluate.precision)
    from pipelines.data.tokens import decode

    answers = [decode(tokenizer, tokens) for tokens in drawn.tokens]
    judge = make_judge(params.preferences.judge)
    points = outcomes(np.array(judge(prompts, served)), np.array(judge(prompts, answers)), params.evaluate.tie_margin)
    interval = bootstrap_interval(points, prompts, params.evaluate.bootstrap, seed_for(params.seed, "decay"))
    return {"win_rate": round(float(points.mean()), 6), "interval": [round(end, 6) for end in interval], "prompts": len(prompts)}


def is_refusal(reply: str) -> bool:
    """Whether a reply opens like a refusal."""
    return reply.strip().lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").startswith(REFUSALS)


def _votes(window: pd.DataFrame) -> dict[str, Any]:
    """Share of thumbs up among the votes, its 95 % interval (Wilson) and how many there are; empty without votes."""
    votes = window["vote"].dropna()
    if votes.empty:
        return {}
    interval = binomtest(int((votes > 0).sum()), len(votes)).proportion_ci(0.95, method="wilson")
    ends = [round(float(end), 6) for end in (interval.low, interval.high)]
    return {"up": round(float((votes > 0).mean()), 6), "interval": ends, "count": len(votes)}
