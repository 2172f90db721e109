"""Trying a model: tokens one by one, the text in pieces that make the whole."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipelines import config
from pipelines.__main__ import run_command
from pipelines.data.tokens import decode, encode_prompt
from pipelines.errors import ConfigurationError, DataError
from pipelines.generate import answer, folder_of, sampled
from pipelines.models.loading import load_causal_lm, load_tokenizer
from tests import small
from tests.project import PARAMS

PROMPT = "HAMLET: To be"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with parameters and a small model as its policy ppo."""
    root = tmp_path_factory.mktemp("generate")
    (root / "params.yaml").write_text(PARAMS, encoding="utf-8")
    small.model_folder(root / "artifacts/policies/ppo/model")
    return root


def test_greedy_tokens_are_the_argmax_of_the_whole_sequence(folder: Path) -> None:
    """The cache changes nothing: each token is the argmax of one forward pass over all before it."""
    model = load_causal_lm(folder / "artifacts/policies/ppo/model")
    prompt = encode_prompt(load_tokenizer(folder / "artifacts/policies/ppo/model"), PROMPT)
    tokens = list(sampled(model, prompt, 8, 0.0, seed=1))
    for index, token in enumerate(tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens[:index]])).logits[0, -1]
        assert int(logits.argmax()) == token


def test_first_tokens_have_the_models_distribution(folder: Path) -> None:
    """4,000 draws: every frequency within 5 standard errors of softmax(logits / temperature)."""
    model = load_causal_lm(folder / "artifacts/policies/ppo/model")
    prompt, draws, temperature = [5, 7, 9], 4000, 0.05
    with torch.no_grad():
        expected = torch.softmax(model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature, dim=-1).tolist()
    counts = Counter(next(sampled(model, prompt, 1, temperature, seed)) for seed in range(draws))
    for token, chance in enumerate(expected):
        error = math.sqrt(chance * (1 - chance) / draws)
        assert abs(counts[token] / draws - chance) <= 5 * error + 1 / draws


def test_the_pieces_make_the_whole_text_and_a_seed_repeats_it(folder: Path) -> None:
    place = folder / "artifacts/policies/ppo/model"
    tokenizer, model = load_tokenizer(place), load_causal_lm(place)
    pieces = list(answer(place, PROMPT, 30, 1.0, seed=4, threads=1))
    tokens = list(sampled(model, encode_prompt(tokenizer, PROMPT), 30, 1.0, seed=4))
    before_eos = tokens[: tokens.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in tokens else tokens
    assert "".join(pieces) == decode(tokenizer, before_eos)
    assert len(pieces) > 5, "it streams"
    assert pieces == list(answer(place, PROMPT, 30, 1.0, seed=4, threads=1))
    assert pieces != list(answer(place, PROMPT, 30, 1.0, seed=5, threads=1))


def test_an_answer_ends_where_the_models_context_does(folder: Path) -> None:
    place = folder / "artifacts/policies/ppo/model"
    list(answer(place, "a" * 100, 1000, 1.0, seed=4, threads=1))
    with pytest.raises(DataError, match="^the prompt has 300 tokens; it needs at least 1 and at most 127$"):
        list(answer(place, "\u2603" * 100, 10, 1.0, seed=4, threads=1))
    with pytest.raises(DataError, match="^the prompt has 0 tokens"):
        list(answer(place, "", 10, 1.0, seed=4, threads=1))


def test_names_and_mistakes(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    params = config.load()
    assert folder_of(folder, "ppo", params) == folder / "artifacts/policies/ppo/model"
    with pytest.raises(DataError, match="artifacts/sft/model: not there yet"):
        folder_of(folder, "sft", params)
    with pytest.raises(ConfigurationError, match="--policy best: params.yaml has no such policy; there are: base, ppo, sft"):
        folder_of(folder, "best", params)
    assert run_command("generate", ["--policy", "ppo", "--max-new-tokens", "3", "--temperature", "0", "--", PROMPT], folder) == 0
    assert capsys.readouterr().out.endswith("\n")
    assert run_command("generate", ["--policy", "base", PROMPT], folder) == 2
    assert capsys.readouterr().err == "error: artifacts/base: not there yet; `prefloop run` trains it\n"
    with pytest.raises(SystemExit) as stop:
        run_command("generate", ["--temperature", "-1", PROMPT], folder)
    assert stop.value.code == 3
