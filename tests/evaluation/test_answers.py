"""Answers and their scores from real small models, against sums worked out another way."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.config import Generation
from pipelines.context import Worker, seed_for
from pipelines.data.tokens import decode, encode_prompt
from pipelines.evaluation.answers import Job, Prompt, answer, as_table
from pipelines.evaluation.figures import describe
from pipelines.evaluation.samples import SAMPLES
from pipelines.journal import Journal, read_from
from pipelines.models.generation import sample
from pipelines.models.loading import load_causal_lm, load_tokenizer, save_model
from pipelines.models.reward import new_reward, save_reward
from tests.small import llama, model_folder, tokenizer

PROMPTS = [
    Prompt(f"p{i}", text)
    for i, text in enumerate(("HAMLET: To be", "LEAR: Blow, winds, and crack", "JULIET:", "ROMEO: But soft"))
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "sft", "policy")):
        model_folder(folder / name, seed)
    model = new_reward(folder / "sft", "mean")
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    save_reward(model, folder / "reward")
    generation = Generation(max_new_tokens=60, batch_size=3)
    return Job(folder / "policy", folder / "sft", folder / "base", folder / "reward", generation, 3, "float32", seed=1)


def _worker(journal: Path | None = None) -> Worker:
    return Worker(0, 1, "cpu", Journal(journal))


def _by_key(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["prompt_id"], row["answer"]): row for row in rows}


def test_rows_are_whole_and_in_the_order_of_the_prompts(job: Job, tmp_path: Path) -> None:
    rows = answer(job, PROMPTS, _worker(tmp_path / "journal"))
    assert [(row["prompt_id"], row["answer"]) for row in rows] == [
        (prompt.id, name) for prompt in PROMPTS for name in ("greedy", "A", "B", "C")
    ]
    table = as_table(rows, lambda prompts, answers: [float(len(text)) for text in answers])
    SAMPLES.validate(table)
    assert table["gold"].tolist() == [len(text) for text in table["text"]]
    assert (
        table.loc[table["answer"] == "greedy", ["reward", "logprob", "logprob_sft", "base_nll", "entropy"]].isna().all(axis=None)
    )
    assert (
        table.loc[table["answer"] != "greedy", ["reward", "logprob", "logprob_sft", "base_nll", "entropy"]].notna().all(axis=None)
    )
    lines, _ = read_from(tmp_path / "journal", 0)  # batches of 3, read by 2: 2 greedy, 4 drawn, twice 2 read, 6 scored
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert {line["total"] for line in lines} == {16}


def test_the_answers_do_not_depend_on_the_shards(job: Job) -> None:
    """Equal texts to the letter; sums to 1e-4 of nats (other batches round differently)."""
    whole = answer(job, PROMPTS, _worker())
    parts = answer(job, PROMPTS[:1], _worker()) + answer(job, PROMPTS[1:], _worker())
    for one, other in zip(whole, parts, strict=True):
        assert (one["text"], one["tokens"], one["ended"]) == (other["text"], other["tokens"], other["ended"])
        for column in ("reward", "logprob", "logprob_sft", "base_nll", "entropy"):
            assert one[column] == pytest.approx(other[column], abs=1e-4, nan_ok=True)


def test_every_policy_draws_from_the_same_seeds(job: Job) -> None:
    """The SFT model under another name gives SFT's answers, and its KL to SFT is 0 but for rounding."""
    as_sft = answer(replace(job, policy=job.sft), PROMPTS, _worker())
    twin = job.sft.parent / "twin"
    model_folder(twin, seed=1)
    as_policy = answer(replace(job, policy=twin), PROMPTS, _worker())
    assert [row["text"] for row in as_policy] == [row["text"] for row in as_sft]
    drawn = [row for row in as_policy if row["answer"] != "greedy"]
    assert [row["logprob"] for row in drawn] == pytest.approx([row["logprob_sft"] for row in drawn], abs=1e-4)


def test_sums_are_those_of_one_plain_forward_pass(job: Job) -> None:
    """Each answer drawn again alone from its own seed, then read without batches by policy, SFT and base."""
    coder = load_tokenizer(job.policy)
    models = {name: load_causal_lm(getattr(job, name)) for name in ("policy", "sft", "base")}
    rows = [row for row in answer(job, PROMPTS, _worker()) if row["answer"] != "greedy"]
    assert {row["ended"] for row in rows} == {True, False}
    for row in rows:
        asked = encode_prompt(coder, row["prompt"])
        seed = seed_for(job.seed, "evaluate", row["prompt_id"], row["answer"])
        drawn = sample(models["policy"], coder.eos_token_id, coder.pad_token_id, [asked], job.generation, [seed], "float32")
        answered, ended = drawn.tokens[0], drawn.ended[0]
        assert (row["text"], row["tokens"], row["ended"]) == (decode(coder, answered), len(answered), ended)
        assert row["base_tokens"] == len(answered) - ended
        sums = {name: _forward(model, asked, answered) for name, model in models.items()}
        assert row["logprob"] == pytest.approx(sums["policy"][0], abs=1e-4)
        assert row["logprob_sft"] == pytest.approx(sums["sft"][0], abs=1e-4)
        assert row["entropy"] == pytest.approx(sums["policy"][1], abs=1e-4)
        text_only = _forward(models["base"], asked, answered[: row["base_tokens"]])[0] if row["base_tokens"] else 0.0
        assert row["base_nll"] == pytest.approx(-text_only, abs=1e-4)


def test_kl_to_sft_against_the_exact_one(tmp_path: Path, job: Job) -> None:
    """Two tokens of a policy whose vocabulary is bent: all 300 + 299 * 300 answers are enumerated."""
    policy, sft = (_peaked(seed) for seed in (5, 6))
    for name, model in (("policy", policy), ("sft", sft)):
        save_model(model, tokenizer(), tmp_path / name)
    save_reward(new_reward(tmp_path / "sft", "mean"), tmp_path / "reward")
    generation = Generation(max_new_tokens=2, batch_size=512)
    few = Job(tmp_path / "policy", tmp_path / "sft", job.base, tmp_path / "reward", generation, 1500, "float32", seed=3)
    rows = answer(few, PROMPTS[:1], _worker())
    table = as_table(rows, lambda prompts, answers: [0.0] * len(answers))
    drift = table["logprob"] - table["logprob_sft"]
    exact = _exact_kl(policy, sft, encode_prompt(tokenizer(), PROMPTS[0].text))
    assert exact > 0.3
    error = float(drift.std()) / math.sqrt(1500)
    assert abs(describe(table)["kl"] - exact) < 4 * error
    assert error < exact / 5


def _peaked(seed: int) -> Any:
    """A small model with large logits, so that its answers differ from another's."""
    model = llama(seed)
    with torch.no_grad():
        model.model.norm.weight.mul_(4.0)
        model.model.embed_tokens.weight.mul_(3.0)
    return model


@torch.no_grad()
def _exact_kl(policy: Any, sft: Any, prompt: list[int]) -> float:
    """KL over all answers of at most two tokens; an answer ends with EOS (1) or at the second token."""
    first = [torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1) for model in (policy, sft)]
    going = [token for token in range(300) if token != 1]
    rows = torch.tensor([[*prompt, token] for token in going])
    second = [torch.log_softmax(model(rows).logits[:, -1].double(), -1) for model in (policy, sft)]
    total = float(first[0][1].exp() * (first[0][1] - first[1][1]))
    both = [start[going][:, None] + then for start, then in zip(first, second, strict=True)]
    return total + float((both[0].exp() * (both[0] - both[1])).sum())


@torch.no_grad()
def _forward(model: Any, asked: list[int], answered: list[int]) -> tuple[float, float]:
    """Sum of log-probabilities and mean entropy of an answer."""
    logits = model(torch.tensor([asked + answered])).logits[0, len(asked) - 1 : -1].double()
    logps = torch.log_softmax(logits, -1)
    chosen = [float(logps[place, token]) for place, token in enumerate(answered)]
    entropy = float(-(logps.exp() * logps).sum(-1).mean())
    return math.fsum(chosen), entropy
