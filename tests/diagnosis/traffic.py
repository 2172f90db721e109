"""Served traffic that a real (tiny) model has generated, and what may befall it: the faults of D21 to D24.

``CASES`` is the list that benchmarks/diagnosis.py measures and test_drift.py holds to. A window is ``SETTINGS.window`` replies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines import config
from pipelines.config import Generation
from pipelines.config_promotion import Monitor
from pipelines.data.tokens import decode, encode_prompt
from pipelines.evaluation import drift
from pipelines.models.generation import sample
from pipelines.observe import Models, decay
from tests.small import TEXT, model_folder

SETTINGS = Monitor()
WORDS = " ".join(TEXT).split()
PROMPTS, ANSWERS = 200, 3
DETECTORS = {"psi": "D21", "ks": "D22", "mmd": "D23"}
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
Rows = tuple[dict[str, drift.Floats], drift.Floats]
"""Signals by name, each [N], and embeddings [N, H]."""


@dataclass(frozen=True)
class World:
    """A champion with the reference of its evaluation, and what chance can do to a window."""

    folder: Path
    models: Models
    reference: Rows
    clusters: list[int]
    noise: drift.Noise


def make(place: Path) -> World:
    """A reference of 200 prompts with 3 answers each."""
    folder = model_folder(place / "model", 1)
    models = Models(folder, model_folder(place / "sft", 2), None)
    asked = [text for text in prompts(PROMPTS, np.random.default_rng(7)) for _ in range(ANSWERS)]
    clusters = [row // ANSWERS for row in range(len(asked))]
    signals, embeddings = served(models, asked, 1)
    noise = drift.noise_of(signals, clusters, embeddings, SETTINGS.window, SETTINGS.resamples, 0)
    return World(folder, models, (signals, embeddings), clusters, noise)


def prompts(count: int, rng: np.random.Generator, low: int = 3, high: int = 9) -> list[str]:
    """So many prompts of ``low`` to ``high`` words."""
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(low, high)))) for _ in range(count)]


def replies(models: Models, asked: list[str], seed: int, tokens: int = 12) -> list[str]:
    """The champion's replies of at most ``tokens`` tokens."""
    ids = [encode_prompt(models.tokenizer, text) for text in asked]
    special = (models.tokenizer.eos_token_id, models.tokenizer.pad_token_id)
    generation = Generation(max_new_tokens=tokens, batch_size=500)
    drawn = sample(models.policy, *special, ids, generation, [seed * 10**6 + i for i in range(len(ids))], "float32")
    return [decode(models.tokenizer, answer) for answer in drawn.tokens]


def served(models: Models, asked: list[str], seed: int, tokens: int = 12) -> Rows:
    """What is measured of the champion's replies."""
    return models.signals(asked, replies(models, asked, seed, tokens))


def judged(world: World, window: Rows) -> list[drift.Finding]:
    """What ``monitor`` finds in a window."""
    both = (world.reference[1], window[1])
    return drift.findings(world.reference[0], window[0], world.clusters, both, world.noise, SETTINGS, 0)


def alarms(world: World, window: Rows) -> list[str]:
    """The detectors that raise an alarm."""
    return sorted({DETECTORS[one.test] for one in judged(world, window) if one.level == "alarm"})


def picked(rows: Rows, chosen: np.ndarray) -> Rows:
    """Some of the rows."""
    return {name: values[chosen] for name, values in rows[0].items()}, rows[1][chosen]


def mixed(one: Rows, other: Rows, share: float, rng: np.random.Generator) -> Rows:
    """A window with this share of rows of the other kind."""
    size = SETTINGS.window
    a = picked(one, rng.choice(len(one[1]), size - int(share * size), replace=False))
    b = picked(other, rng.choice(len(other[1]), int(share * size), replace=False))
    return {name: np.concatenate([a[0][name], b[0][name]]) for name in a[0]}, np.concatenate([a[1], b[1]])


def clean(world: World, seed: int) -> Rows:
    """A window of the traffic that the champion was evaluated for."""
    return served(world.models, prompts(SETTINGS.window, np.random.default_rng(seed)), seed)


def longer(world: World, seed: int) -> Rows:
    """People ask at greater length."""
    return served(world.models, prompts(SETTINGS.window, np.random.default_rng(seed), 12, 20), seed)


def shorter(world: World, seed: int) -> Rows:
    """Replies are cut after three tokens."""
    return served(world.models, prompts(SETTINGS.window, np.random.default_rng(seed)), seed, tokens=3)


def elsewhere(world: World, seed: int) -> Rows:
    """Prompts of the same length about something else."""
    rng = np.random.default_rng(seed)
    asked = [text.translate(str.maketrans("aeiou", "01234")) for text in prompts(SETTINGS.window, rng)]
    return served(world.models, asked, seed)


def drifting(kind: Callable[[World, int], Rows], share: float) -> Callable[[World], list[list[str]]]:
    """Who raises an alarm in two windows: half of ``share``, then all of it, is of this kind."""

    def run(world: World) -> list[list[str]]:
        rng = np.random.default_rng(5)
        return [alarms(world, mixed(clean(world, 10 + n), kind(world, 20 + n), part, rng)) for n, part in
                enumerate((share / 2, share))]  # fmt: skip

    return run


def decaying(said: str) -> Callable[[World], list[list[str]]]:
    """The champion's replies end with ``said``; the judge compares them with those of a model before it."""

    def run(world: World) -> list[list[str]]:
        asked = prompts(SETTINGS.window, np.random.default_rng(9))
        window = pd.DataFrame({"prompt": asked, "reply": [f"{text}{said}" for text in replies(world.models, asked, 9)]})
        found = decay(world.folder.with_name("sft"), window, config.load(RECIPE))
        return [["D24"] if found["interval"][1] < 0.5 else []]

    return run


@dataclass(frozen=True)
class Case:
    """One detector: the fault, and its weak form. Both give the detectors that spoke, window by window."""

    detector: str
    fault: str
    run: Callable[[World], list[list[str]]]
    near: str
    miss: Callable[[World], list[list[str]]]


CASES = [
    Case("D21", "prompts of 12 to 19 words instead of 3 to 8", drifting(longer, 1.0), "2 % of them", drifting(longer, 0.02)),
    Case("D22", "replies cut after 3 tokens", drifting(shorter, 1.0), "4 % of them", drifting(shorter, 0.04)),
    Case("D23", "prompts of the same length in other letters", drifting(elsewhere, 1.0), "2 % of them",
         drifting(elsewhere, 0.02)),
    Case("D24", "every reply goes on with an insult", decaying(" This is terrible, I hate you."),
         "replies as good as those of the model before", decaying("")),
]  # fmt: skip
