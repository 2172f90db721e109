"""POSIX from its definition: by hand, and on a real model against single forward passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import Generation
from pipelines.context import Worker
from pipelines.data.tokens import encode_prompt
from pipelines.evaluation.sensitivity import Job, ask, posix
from pipelines.journal import Journal
from pipelines.models.loading import load_causal_lm, load_tokenizer
from tests.small import model_folder

WORKER = Worker(0, 1, "cpu", Journal(None))


def test_two_phrasings_by_hand() -> None:
    """log P(y_j | x_i) = [[-2, -6], [-5, -3]], answers of 2 and 3 tokens.

    Off the diagonal: |-6 + 3| / 3 = 1 and |-5 + 2| / 2 = 1.5; over 2 * 1 pairs 1.25.
    """
    assert posix([[-2, -6], [-5, -3]], [2, 3]) == pytest.approx(1.25, abs=1e-12)


def test_three_phrasings_by_hand() -> None:
    """Columns less their diagonals: 0, 1, 3 (1 token); 4, 0, -4 (4 tokens); 3, -6, 0 (3 tokens): (4 + 2 + 3) / 6 = 1.5."""
    assert posix([[-4, -6, -9], [-3, -10, -18], [-1, -14, -12]], [1, 4, 3]) == pytest.approx(1.5, abs=1e-12)


@given(st.integers(2, 6), st.integers(0, 1000))
def test_a_model_that_does_not_hear_the_wording_has_none(phrasings: int, seed: int) -> None:
    row = np.random.default_rng(seed).normal(-20, 5, phrasings)
    assert posix(np.tile(row, (phrasings, 1)), np.arange(1, phrasings + 1)) == 0.0


def test_one_phrasing_has_no_index() -> None:
    with pytest.raises(ValueError, match="N of 2 or more"):
        posix([[-1.0]], [2])


def test_on_a_model_against_plain_forward_passes(tmp_path: Path) -> None:
    """Every answer drawn again by argmax, alone, and read under every phrasing, alone."""
    folder = model_folder(tmp_path / "model", seed=4)
    texts = ["HAMLET: To be", "HAMLET says: To be", "HAMLET.\nTo be"]
    generation = Generation(max_new_tokens=5, batch_size=2)
    found = ask(Job(folder, generation, "float32"), [texts, ["JULIET: Good", "JULIET: Good night " * 60], ["alone"]], WORKER)
    assert len(found) == 1, "an intent that is too long and one with a single phrasing are left out"

    coder, model = load_tokenizer(folder), load_causal_lm(folder)
    prompts = [encode_prompt(coder, text) for text in texts]
    answers = [_greedy(model, prompt, coder.eos_token_id) for prompt in prompts]
    table = [[_logprob(model, prompt, answer) for answer in answers] for prompt in prompts]
    assert found[0] == pytest.approx(posix(table, [len(answer) for answer in answers]), abs=1e-5)
    assert found[0] > 0


@torch.no_grad()
def _greedy(model: torch.nn.Module, prompt: list[int], eos: int) -> list[int]:
    said: list[int] = []
    while len(said) < 5 and (not said or said[-1] != eos):
        said.append(int(model(torch.tensor([prompt + said])).logits[0, -1].argmax()))
    return said


@torch.no_grad()
def _logprob(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    logps = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(logps[range(len(answer)), answer].sum())
