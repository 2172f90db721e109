"""Drift on replies that a real (tiny) model has generated: none, sudden, gradual; how often clean windows raise an alarm."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.config import Generation
from pipelines.config_promotion import Monitor
from pipelines.data.tokens import decode, encode_prompt
from pipelines.evaluation import drift
from pipelines.models.generation import sample
from pipelines.observe import Models
from tests.small import TEXT, model_folder

SETTINGS = Monitor()
WORDS = " ".join(TEXT).split()
POOL, PROMPTS, ANSWERS = 3000, 200, 3
Rows = tuple[dict[str, drift.Floats], drift.Floats]


def test_psi_by_hand() -> None:
    """Ten bins with a tenth each; the window has two tenths in the last and none in the first."""
    reference = np.arange(1000.0)
    window = np.concatenate([np.arange(100.0, 1000.0), np.arange(900.0, 1000.0)])
    expected = (0.2 - 0.1) * math.log(0.2 / 0.1) + (1e-4 - 0.1) * math.log(1e-4 / 0.1)
    assert drift.psi(reference, window) == pytest.approx(expected, rel=1e-9)
    assert drift.psi(reference, reference) == 0.0
    assert drift.psi(np.zeros(50), np.zeros(50)) == 0.0, "a signal that never varies"


def test_mmd_by_hand() -> None:
    """Two points against two: means of the kernel's blocks."""
    gram = drift.kernel(np.array([[0.0], [1.0], [5.0], [6.0]]))
    expected = gram[:2, :2].mean() + gram[2:, 2:].mean() - 2 * gram[:2, 2:].mean()
    assert float(drift.mmd2(gram, np.array([0, 1]), np.array([2, 3]))) == pytest.approx(expected)
    both = drift.mmd2(gram, np.array([[0, 1], [0, 2]]), np.array([[2, 3], [1, 3]]))
    assert both[0] == pytest.approx(expected)
    assert float(drift.mmd2(gram, np.array([0, 0]), np.array([0]))) == pytest.approx(0.0)


def test_a_window_is_large_enough() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 500"):
        Monitor(window=499)


def prompts(count: int, rng: np.random.Generator, low: int = 3, high: int = 9) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(low, high)))) for _ in range(count)]


def replies(models: Models, asked: list[str], seed: int, tokens: int = 12) -> Rows:
    ids = [encode_prompt(models.tokenizer, text) for text in asked]
    special = (models.tokenizer.eos_token_id, models.tokenizer.pad_token_id)
    generation = Generation(max_new_tokens=tokens, batch_size=500)
    drawn = sample(models.policy, *special, ids, generation, [seed * 10**6 + i for i in range(len(ids))], "float32")
    return models.signals(asked, [decode(models.tokenizer, answer) for answer in drawn.tokens])


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Models, Rows, list[int], drift.Noise, Rows]:
    """A reference of 200 prompts with 3 answers each, what chance can do, and 3,000 replies to other prompts of the same kind."""
    folder: Path = model_folder(tmp_path_factory.mktemp("model"), 1)
    sft = model_folder(tmp_path_factory.mktemp("sft"), 2)
    models, rng = Models(folder, sft, None), np.random.default_rng(7)
    asked = [text for text in prompts(PROMPTS, rng) for _ in range(ANSWERS)]
    clusters = [row // ANSWERS for row in range(len(asked))]
    reference = replies(models, asked, 1)
    noise = drift.noise_of(*(reference[0], clusters, reference[1]), SETTINGS.window, SETTINGS.resamples, 0)
    return models, reference, clusters, noise, replies(models, prompts(POOL, rng), 2)


def judged(traffic: tuple, window: Rows) -> list[drift.Finding]:
    _, reference, clusters, noise, _ = traffic
    return drift.findings(reference[0], window[0], clusters, (reference[1], window[1]), noise, SETTINGS, 0)


def picked(rows: Rows, chosen: np.ndarray) -> Rows:
    return {name: values[chosen] for name, values in rows[0].items()}, rows[1][chosen]


def mixed(one: Rows, other: Rows, share: float, rng: np.random.Generator) -> Rows:
    """A window with this share of rows of the other kind."""
    size = SETTINGS.window
    a = picked(one, rng.choice(len(one[1]), size - int(share * size), replace=False))
    b = picked(other, rng.choice(len(other[1]), int(share * size), replace=False))
    return {name: np.concatenate([a[0][name], b[0][name]]) for name in a[0]}, np.concatenate([a[1], b[1]])


def test_clean_windows_raise_few_alarms(traffic: tuple) -> None:
    """At most 5 alarms in 100 clean windows of 500 replies, all signals together."""
    rng, alarms = np.random.default_rng(3), []
    for _ in range(100):
        found = judged(traffic, picked(traffic[4], rng.choice(POOL, SETTINGS.window, replace=False)))
        alarms += [(one.signal, one.test) for one in found if one.level == "alarm"]
    assert len(alarms) <= 5, alarms


def test_sudden_drift_is_seen_in_the_first_window(traffic: tuple) -> None:
    rng = np.random.default_rng(5)
    longer = replies(traffic[0], prompts(SETTINGS.window, rng, 12, 20), 3)
    found = judged(traffic, longer)
    assert drift.level_of(found) == "alarm"
    assert {"prompt_tokens"} <= {one.signal for one in found if one.level == "alarm"}
    shorter = replies(traffic[0], prompts(SETTINGS.window, rng), 4, tokens=3)
    alarming = {one.signal for one in judged(traffic, shorter) if one.level == "alarm"}
    assert {"reply_tokens", "embedding"} <= alarming
    assert "prompt_tokens" not in alarming, "it names what has changed"


def test_gradual_drift_is_seen_before_it_is_whole(traffic: tuple) -> None:
    rng = np.random.default_rng(6)
    other = replies(traffic[0], prompts(SETTINGS.window, rng, 12, 20), 5)
    levels = [drift.level_of(judged(traffic, mixed(traffic[4], other, share, rng))) for share in (0.02, 0.3, 0.6)]
    assert levels[0] != "alarm", "a near miss"
    assert levels[1:] == ["alarm", "alarm"]
