"""Engines beside the policy itself: refused where they cannot run, their difference weighed, an alarm where it is large.

No vLLM runs here: in its place stands a second engine of the project's own, whose arithmetic or temperature is another.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from pipelines.config import Ppo
from pipelines.errors import EnvironmentFault
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.training import engines
from pipelines.training.engines import Engine, collected, hf, open_engine
from pipelines.training.learner import make_learner
from pipelines.training.rollout import advantages_of, roll_out
from pipelines.training.update import update
from tests.training import onpolicy
from tests.training.onpolicy import PROMPTS, alone, job, params


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onpolicy.make_folder(tmp_path_factory.mktemp("sft"))


def other(**changes: Any) -> Callable[[Ppo, Path, Any, int, str], Engine]:
    """The policy itself under other settings, in the place of vLLM."""
    return lambda settings, *rest: hf(settings.model_copy(update=changes), *rest)


def hot(settings: Ppo, *rest: Any) -> Engine:
    """The policy itself at one and a half times the temperature."""
    warm = settings.generation.model_copy(update={"temperature": 1.5})
    return hf(settings.model_copy(update={"generation": warm}), *rest)


def test_vllm_is_refused_where_it_cannot_run(sft: Path, tmp_path: Path) -> None:
    """On a CPU; and on a GPU without the package. Nothing has been written by then."""
    with pytest.raises(EnvironmentFault, match="needs a GPU.*runtime.gpus_per_worker: 1, or engine: hf"):
        alone(job(sft, tmp_path, params(engine="vllm")))
    assert not (tmp_path / "scratch").exists()
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(EnvironmentFault, match="needs the package vllm"):
            open_engine(params(engine="vllm"), sft, load_tokenizer(sft), 5, "cuda:0")


def test_what_vllm_returns_becomes_answers() -> None:
    """Its completions name the drawn token among the log-probabilities of each place; an answer has ended with EOS (1)."""
    at = [{5: SimpleNamespace(logprob=-0.5)}, {9: SimpleNamespace(logprob=-0.1), 1: SimpleNamespace(logprob=-2.0)}]
    outputs = [SimpleNamespace(token_ids=(5, 1), logprobs=at), SimpleNamespace(token_ids=(5,), logprobs=at[:1])]
    answers = collected(iter(outputs), 1)
    assert (answers.tokens, answers.logprobs, answers.ended) == ([[5, 1], [5]], [[-0.5, -2.0], [-0.5]], [True, False])


def test_an_engine_of_less_precision_is_weighed(sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampled in bf16, trained in float32: a small gap stands in the history, no alarm; the ratio is 1 before the update, as
    it is between the trainer's own log-probabilities."""
    monkeypatch.setitem(engines.ENGINES, "vllm", other(precision="bf16"))
    task = job(sft, tmp_path, params(engine="vllm", steps=2, mini_batch_size=8, micro_batch_size=8))
    alone(task)
    rows = pd.read_parquet(task.out / "history.parquet")
    assert rows["engine/logprob_gap"].between(1e-5, 0.05).all()
    assert rows["engine/alarm"].tolist() == [0.0, 0.0]
    assert rows["policy/first_ratio"].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert json.loads((task.scratch / "rollouts.jsonl").read_text().splitlines()[0])["engine"] == "vllm"


def test_an_engine_that_samples_something_else_raises_the_alarm(
    sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.ENGINES, "vllm", hot)
    task = job(sft, tmp_path, params(engine="vllm", steps=2))
    alone(task, tmp_path / "journal.jsonl")
    rows = pd.read_parquet(task.out / "history.parquet")
    assert rows["engine/alarm"].tolist() == [1.0, 1.0]
    notes = [json.loads(line)["note"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    gap = rows["engine/logprob_gap"][0]
    assert gap > engines.LIMIT
    assert sum(f"step 1: engine vllm and trainer disagree by {gap:.3f} nats a token" in note for note in notes) == 1


def test_the_weights_reach_the_loss(sft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mini-batch, before any update the ratio is 1: the policy's loss is the mean of -min(pi / mu, 2) A over tokens."""
    monkeypatch.setitem(engines.ENGINES, "vllm", hot)
    settings = params(engine="vllm", ppo_epochs=1, mini_batch_size=7, batch_size=7)
    learner = make_learner(load_causal_lm(sft), settings, 0)
    rollout = roll_out(learner, PROMPTS, 0, open_engine(settings, sft, load_tokenizer(sft), 5, "cpu"), 0, 1)
    advantages, returns = advantages_of(rollout, torch.linspace(-1, 1, 7), settings, 0.1)
    weights = (rollout.logprobs - rollout.sampled).exp().clamp(max=2.0)
    assert (weights * rollout.mask).max() > 1.2
    expected = -(weights * advantages * rollout.mask).sum() / rollout.mask.sum()
    assert update(learner, rollout, advantages, returns, 7, 0, 1)["loss/policy"] == pytest.approx(float(expected), abs=1e-6)
