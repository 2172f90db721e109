"""Faults injected for real: a tiny model is trained with each, without it, and with a weak form of it that should pass.

``CASES`` is the list that benchmarks/diagnosis.py measures and test_faults.py holds to. A run takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

from pipelines import config
from pipelines.config import Generation, Ppo
from pipelines.context import Worker
from pipelines.data.schemas import PAIRS
from pipelines.data.tables import read_table, write_table
from pipelines.diagnosis import Record, detector_of, examine
from pipelines.evaluation.findings import labels
from pipelines.journal import Journal, read_from
from pipelines.training import checkpoints, dpo, offline, reward, sft
from pipelines.training import update as updates
from pipelines.training.learner import Learner
from pipelines.training.ppo import Job, train
from pipelines.training.rewards import LearnedReward, Term
from tests import small
from tests.training import helpers, onpolicy

STEPS = 50
LATE = 5
CLEAN: dict[str, Any] = {
    "steps": STEPS,
    "adapter": "none",
    "learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "batch_size": 64,
    "mini_batch_size": 32,
    "micro_batch_size": 64,
    "save_steps": 20,
    "beta": 0.2,
    "missing_eos_penalty": 0.3,
    "generation": Generation(max_new_tokens=12, batch_size=64),
}


@dataclass(frozen=True)
class Scored:
    """A reward that is a function of one answer's tokens; ``late``: another one from step ``since`` on."""

    score: Callable[[Sequence[int]], float]
    late: Callable[[Sequence[int]], float] | None = None
    since: int = 0
    until: int = 10**9

    def open(self, tokenizer: Any, device: str) -> Any:
        """Calls are counted: the probe before training is call 0."""
        calls = [0]

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            now = self.late if self.late and self.since <= calls[0] <= self.until else self.score
            calls[0] += 1
            return [now(answer) for answer in answers]

        return scores


WORTH = [0.0, 0.0, 0.9, 0.1, 0.6, 0.3, 0.8, 0.2, 0.7, 0.4, 1.0, 0.5]
"""What each of the 12 tokens is worth; EOS (1) nothing."""


def mean_worth(answer: Sequence[int]) -> float:
    """The mean worth of the tokens, EOS counted as a bad word: an answer that never ends scores better."""
    return sum(WORTH[token] for token in answer) / len(answer)


def kind(answer: Sequence[int]) -> float:
    """The mean worth of the words, EOS left out: what a clean run learns, and how a judge sees it."""
    words = [WORTH[token] for token in answer if token > 1]
    return sum(words) / len(words) if words else 0.0


def total_worth(answer: Sequence[int]) -> float:
    """The worth of all words together."""
    return sum(WORTH[token] for token in answer)


def counted(answer: Sequence[int]) -> float:
    """The number of words."""
    return 0.25 * len(answer)


def sevens(answer: Sequence[int]) -> float:
    """The share of one token."""
    return sum(token == 7 for token in answer) / len(answer)


def repeats(answer: Sequence[int]) -> float:
    """The share of 3-grams that were said before."""
    grams = [tuple(answer[i : i + 3]) for i in range(len(answer) - 2)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def slow(answer: Sequence[int]) -> float:
    """The clean score, after a hundredth of a second."""
    time.sleep(0.01)
    return kind(answer)


def half(answer: Sequence[int]) -> float:
    """A reward that reads nothing."""
    return 0.5


def passed(answer: Sequence[int]) -> float:
    """A reward that is either 0 or 1."""
    return float(kind(answer) > 0.6)


def nan(answer: Sequence[int]) -> float:
    """A broken reward."""
    return float("nan")


def huge(answer: Sequence[int]) -> float:
    """A number that is large, and a number."""
    return 1e6 * kind(answer)


def on_policy(
    place: Path,
    seed: int = 5,
    score: Scored | LearnedReward = Scored(kind),
    weight: float = 1.0,
    judge: Scored | None = None,
    inject: Callable[[], Any] = contextlib.nullcontext,
    prompts: list[list[int]] | None = None,
    sft: Path | None = None,
    top_k: int = 0,
    **changes: Any,
) -> Record:
    """Train a policy as the stage does. ``top_k`` gets past the configuration, which refuses it."""
    sft = sft or onpolicy.make_folder(place / "sft")
    params = Ppo.model_validate({"method": "ppo", "lora_r": 4, "lora_alpha": 8, "precision": "float32"} | CLEAN | changes)
    if top_k:
        params = params.model_copy(update={"generation": params.generation.model_copy(update={"top_k": top_k})})
    watching = Term("held_out", 1.0, judge) if judge else None
    asked = prompts or onpolicy.PROMPTS
    task = Job(sft, asked, (Term("score", weight, score),), params, seed, place / "out", place / "scratch", held_out=watching)
    journal = place / "journal.jsonl"
    with inject():
        train(task, Worker(0, 1, "cpu", Journal(journal)))
    history = read_table(task.out / "history.parquet")
    return Record("on_policy", history, params.model_dump(), journal=read_from(journal, 0)[0])


@contextlib.contextmanager
def loss_times(factor: float, at: int) -> Iterator[None]:
    """The loss of step ``at`` is multiplied."""
    honest, now = updates._loss, [0]
    whole = updates.update

    def counted_update(*arguments: Any, **more: Any) -> Any:
        now[0] = arguments[6] if len(arguments) > 6 else more["step"]
        return whole(*arguments, **more)

    def scaled(*arguments: Any) -> Any:
        loss, *rest = honest(*arguments)
        return (loss * (factor if now[0] == at else 1.0), *rest)

    with mock.patch.object(updates, "_loss", scaled), mock.patch("pipelines.training.ppo.update", counted_update):
        yield


@contextlib.contextmanager
def rollout_temperature(temperature: float) -> Iterator[None]:
    """Old log-probabilities are taken at another temperature than the update's."""
    honest = Learner.assess

    def assess(self: Learner, packed: Any, **_: Any) -> Any:
        params = self.params
        generation = params.generation.model_copy(update={"temperature": temperature})
        self.params = params.model_copy(update={"generation": generation})
        try:
            return honest(self, packed)
        finally:
            self.params = params

    apart = mock.patch("pipelines.training.rollout.begins_the_update", return_value=False)
    with apart, mock.patch.object(Learner, "assess", assess):
        yield


@contextlib.contextmanager
def critic_rate(factor: float) -> Iterator[None]:
    """Every step of the value head is ``factor`` times as long."""
    honest = updates._one

    def one(learner: Learner, *rest: Any) -> Any:
        assert learner.value_head is not None
        before = learner.value_head.weight.detach().clone()
        done = honest(learner, *rest)
        with torch.no_grad():
            learner.value_head.weight.add_((factor - 1.0) * (learner.value_head.weight - before))
        return done

    with mock.patch.object(updates, "_one", one):
        yield


def poisoned(place: Path, value: Callable[[Sequence[int]], float]) -> Record:
    """The reward of step 20 is ``value``."""
    return on_policy(place, score=Scored(kind, value, 20, 20), steps=25)


def resumed(place: Path, flip: bool) -> Record:
    """Cut in step 35 and gone on from the checkpoint of step 30; ``flip``: with one bit of a weight that has changed on disk."""
    sft = onpolicy.make_folder(place / "sft")
    stop = onpolicy.Fault("raise", 35, place / "fired")
    with contextlib.suppress(RuntimeError):
        on_policy(place, score=stop, sft=sft, save_steps=10, steps=36)  # type: ignore[arg-type]
    if flip:
        folder = place / "scratch" / "checkpoints"
        found = checkpoints.newest(folder)
        assert found is not None
        step, states = found
        weight = states["learner"]["weights"]["model.layers.0.mlp.up_proj.weight"]
        weight.view(torch.int32)[0, 0] ^= 1 << 23  # the lowest bit of the exponent: the number is doubled or halved
        checkpoints.save(folder, step, states)
    return on_policy(place, score=stop, sft=sft, save_steps=10, steps=36)  # type: ignore[arg-type]


def ensemble(place: Path, seed: int = 5, **changes: Any) -> Record:
    """PPO against three reward models of one kind, trained on few pairs from different seeds."""
    sft = small.model_folder(place / "sft")
    pairs = helpers.pairs(place, (32, 8, 32))
    training = config.Reward(adapter="none", precision="float32", layers=1, batch_size=8, micro_batch_size=8, learning_rate=1e-2,
                             num_train_epochs=4)  # fmt: skip
    for member in range(3):
        out = place / "reward" / (f"members/{member}" if member else "")
        reward.train(reward.Job(sft, pairs, out, place / f"scratch-{member}", training, member), helpers.worker())
    settings = {"steps": 40, "batch_size": 32, "micro_batch_size": 32} | changes
    learned = LearnedReward(place / "reward", sft, 64, "float32")
    return on_policy(place, seed, learned, sft=sft, prompts=[[40 + n, 60 + n] for n in range(16)], **settings)


def table_of_pairs(folder: Path, counts: tuple[int, int, int], flipped: float, alike: bool = False) -> Path:
    """The helpers' pairs with a share of them swapped; ``alike``: chosen and rejected differ in one word of many."""
    path = helpers.pairs(folder, counts)
    frame = read_table(path, PAIRS)
    swapped = np.random.default_rng(1).random(len(frame)) < flipped
    for one, other in (("chosen", "rejected"), ("chosen_ended", "rejected_ended")):
        frame.loc[swapped, [one, other]] = frame.loc[swapped, [other, one]].to_numpy()
    if alike:
        frame["chosen"] = [f" the night is long and the day {n % 7} is short, good" for n in range(len(frame))]
        frame["rejected"] = [f" the night is long and the day {n % 7} is short, bad" for n in range(len(frame))]
        frame["chosen_ended"] = frame["rejected_ended"] = True
    write_table(frame, path, PAIRS)
    return path


def reward_model(place: Path, seed: int = 5, flipped: float = 0.0, **changes: Any) -> Record:
    """Train a reward model; the gold that the labels are measured by says that day is better than night."""
    sft = small.model_folder(place / "sft")
    pairs = table_of_pairs(place, (96, 32, 64), flipped)
    plain = {"adapter": "none", "precision": "float32", "layers": 1, "batch_size": 8, "micro_batch_size": 8,
             "learning_rate": 5e-3, "num_train_epochs": 4}  # fmt: skip
    training = config.Reward(**(plain | changes))
    journal = place / "journal.jsonl"
    reward.train(reward.Job(sft, pairs, place / "out", place / "scratch", training, seed), helpers.worker(journal))
    frame = read_table(pairs, PAIRS)
    gold = pd.DataFrame(
        [{"prompt_id": row["prompt_id"], "answer": row[side], "gold": float("day" in row[side])}
         for row in frame.to_dict("records") for side in ("chosen", "rejected")]
    )  # fmt: skip
    figures = json.loads((place / "out" / "metrics.json").read_text()) | labels(frame, gold) | {"known_pairs": len(frame)}
    return Record(
        "reward", read_table(place / "out" / "history.parquet"), training.model_dump(), figures, read_from(journal, 0)[0]
    )


def pairwise(place: Path, seed: int = 5, alike: bool = False, same: bool = False, **changes: Any) -> Record:
    """Train with DPO; ``same``: both sides of every pair become equal behind the schema's back."""
    sft = small.model_folder(place / "sft")
    pairs = table_of_pairs(place, (64, 16, 8), 0.0, alike)
    plain = {"method": "dpo", "adapter": "none", "precision": "float32", "batch_size": 8, "micro_batch_size": 8, "beta": 0.2,
             "learning_rate": 1e-4, "num_train_epochs": 4}  # fmt: skip
    training = config.Dpo(**(plain | changes))
    honest = offline.read_rows

    def equal(*arguments: Any) -> Any:
        return {split: [row | {"rejected_ids": row["chosen_ids"]} for row in rows] for split, rows in honest(*arguments).items()}

    journal = place / "journal.jsonl"
    with mock.patch.object(offline, "read_rows", equal if same else honest):
        dpo.train(dpo.Job(sft, pairs, place / "out", place / "scratch", training, seed), helpers.worker(journal))
    figures = json.loads((place / "out" / "metrics.json").read_text())
    return Record(
        "offline", read_table(place / "out" / "history.parquet"), training.model_dump(), figures, read_from(journal, 0)[0]
    )


def demonstrated(place: Path, seed: int) -> Record:
    """Train with SFT on the helpers' demonstrations."""
    base, table = small.model_folder(place / "base"), helpers.demonstrations(place, 96, 24)
    training = config.Sft(adapter="none", precision="float32", learning_rate=1e-3, batch_size=8, micro_batch_size=8,
                          num_train_epochs=4)  # fmt: skip
    journal = place / "journal.jsonl"
    sft.train(sft.Job(base, table, place / "out", place / "scratch", training, seed), helpers.worker(journal))
    figures = json.loads((place / "out" / "metrics.json").read_text())
    return Record("sft", read_table(place / "out" / "history.parquet"), training.model_dump(), figures, read_from(journal, 0)[0])


Run = Callable[[Path], Record]
Onset = Callable[[Record], int]


@dataclass(frozen=True)
class Case:
    """One detector: the fault, what its first cause must say, its weak form, and when the fault's own signal is there.

    ``onset``: the first step at which the unsmoothed signal is beyond the limit (a policy needs time to learn a wrong thing).
    """

    detector: str
    fault: str
    run: Run
    cause: str
    near: str
    miss: Run
    onset: Onset = field(default=lambda record: record.last_step)


def in_time(case: Case, record: Record) -> bool:
    """Whether the detector speaks within 5 steps after its window is full, counted from the onset, and names the cause first."""
    detector = detector_of(case.detector)
    hits = detector.find(record)
    causes = {one.detector: one.causes[0] for one in examine(record)}
    onset = onset_of(case, record)
    if onset is None or not hits:
        return False
    return hits[0].step <= max(onset, detector.warmup) + detector.window - 1 + LATE and case.cause in causes[case.detector]


def onset_of(case: Case, record: Record) -> int | None:
    """When the fault's own signal is there; None where it never is."""
    try:
        return case.onset(record)
    except IndexError:
        return None


def first(history: pd.DataFrame, flags: Any) -> int:
    """The second of the first two steps in a row at which a flag is set (one alone is noise); IndexError where there are none."""
    lasting = np.asarray(flags)
    return int(history["step"].to_numpy()[1:][lasting[1:] & lasting[:-1]][0])


def once(history: pd.DataFrame, flags: Any) -> int:
    """The first step at which a flag is set, for rules that look at one step; IndexError where there is none."""
    return int(history["step"].to_numpy()[np.asarray(flags)][0])


def above(column: str, limit: float) -> Onset:
    """When a column is above a limit."""
    return lambda record: once(record.history, record.history[column] > limit)


def below_start(column: str, share: float) -> Onset:
    """When a column is below a share of its first value."""
    return lambda record: once(record.history, record.history[column] < share * record.history[column].iloc[0])


def since(step: int) -> Onset:
    """A fault that is there at once."""
    return lambda record: step


def start(column: pd.Series, steps: int = 3) -> float:
    """The mean of the first steps."""
    return float(column.head(steps).mean())


def ratio_off(record: Record) -> int:
    """D6: the mean ratio outside 0.9 to 1.1."""
    history = record.history
    return once(history, (history["policy/ratio"] - 1.0).abs() > 0.1)


def too_long(record: Record) -> int:
    """D10: a step's mean length."""
    history = record.history
    length = history["tokens/response_length"]
    return first(history, (length > 1.5 * start(length)) & (history["objective/length_correlation"] > 0.5))


def cut_off(record: Record) -> int:
    """D11: a step's share without EOS."""
    history = record.history
    cut = 1.0 - history["tokens/eos_rate"]
    return first(history, (cut > 0.3) & (cut - start(cut, 5) > 0.1))


def repeated(record: Record) -> int:
    """D12: a step's share of repeated 3-grams."""
    history = record.history
    share = history["tokens/repetition"]
    return first(history, share > max(2.0 * start(share), start(share) + 0.2))


def judge_fallen(record: Record) -> int:
    """D13: a step's judge two standard errors below the first steps'."""
    history = record.history
    judge = history["judge/held_out"]
    return first(history, judge < start(judge) - 2.0 * history["judge/held_out_se"])


def disagreeing(record: Record) -> int:
    """D14: a step's disagreement twice the first steps'."""
    history = record.history
    share = history["reward/disagreement"]
    return first(history, share > 2.0 * start(share))


def value_off(record: Record) -> int:
    """D16: a step's squared error above five variances of the returns, after the warm-up."""
    history = record.history
    late = history[history["step"] > 20]
    return first(late, 2.0 * late["loss/value"] > 5.0 * late["val/return_variance"])


def displaced(record: Record) -> int:
    """D17: a batch's chosen answers have lost 20 % of their log-probability under the reference, or half a nat a token."""
    history = record.history
    moved = history["rewards/chosen"] / ALIKE["beta"]
    share = moved < 0.2 * (history["logps/chosen"] - moved)
    return first(history, share | (moved < -0.5 * record.figures["chosen_tokens"]))


FAST: dict[str, Any] = {"learning_rate": 3e-2}
LONG: dict[str, Any] = {
    "score": Scored(counted), "generation": Generation(max_new_tokens=24, batch_size=64), "missing_eos_penalty": 0.0,
    "normalise_scores": "none", "learning_rate": 1e-3,
}  # fmt: skip
GREEDY: dict[str, Any] = {"score": Scored(sevens), "learning_rate": 5e-3}
TOTAL: dict[str, Any] = {"score": Scored(total_worth)}
ENDLESS: dict[str, Any] = {"score": Scored(mean_worth)}
AGAIN: dict[str, Any] = {"score": Scored(repeats)}
ALIKE: dict[str, Any] = {"alike": True, "beta": 0.02}
LEARNT_BY_HEART: dict[str, Any] = {"num_train_epochs": 30, "learning_rate": 1e-2, "early_stopping_patience": 1000}

CASES: tuple[Case, ...] = (
    Case("D1", "the reward is NaN in step 20", partial(poisoned, value=nan), "the reward returned NaN",
         "the reward is a million times as large in step 20", partial(poisoned, value=huge), since(20)),
    Case("D2", "the loss of step 40 times 10,000",
         partial(on_policy, steps=45, inject=partial(loss_times, 1e4, 40)), "a batch of outliers",
         "the loss of step 40 times 1.5", partial(on_policy, steps=45, inject=partial(loss_times, 1.5, 40)), since(40)),
    Case("D3", "learning rate x 100", partial(on_policy, steps=10, **FAST), "the learning rate is too high",
         "learning rate x 1.3", partial(on_policy, steps=10, learning_rate=4e-4), above("policy/approxkl", 0.015)),
    Case("D4", "beta 0", partial(on_policy, steps=25, **TOTAL, beta=0.0, learning_rate=3e-3), "beta is 0",
         "beta 0.2", partial(on_policy, steps=25, **TOTAL), above("objective/kl", 10.0)),
    Case("D5", "top-k sampling, k = 6 of 12", partial(on_policy, steps=8, top_k=6), "answers come from another distribution",
         "top-k sampling with k = the whole vocabulary", partial(on_policy, steps=8, top_k=12), since(1)),
    Case("D6", "learning rate x 1,000", partial(on_policy, steps=10, learning_rate=3e-1), "the learning rate is too high",
         "learning rate x 1.3", partial(on_policy, steps=10, learning_rate=4e-4), ratio_off),
    Case("D7", "old log-probabilities at temperature 1.3", partial(on_policy, steps=5, inject=partial(rollout_temperature, 1.3)),
         "rollout and update", "the same at temperature 1.0001",
         partial(on_policy, steps=5, inject=partial(rollout_temperature, 1.0001)), since(1)),
    Case("D8", "learning rate x 300", partial(on_policy, steps=20, learning_rate=9e-2), "the learning rate is too high",
         "learning rate x 1.3", partial(on_policy, steps=20, learning_rate=4e-4), above("policy/clipfrac", 0.3)),
    Case("D9", "beta 0, and a reward that pays for one token",
         partial(on_policy, steps=30, **GREEDY, beta=0.0), "beta is too small",
         "the same with beta 2", partial(on_policy, steps=30, **GREEDY, beta=2.0), below_start("objective/entropy", 0.3)),
    Case("D10", "a reward that counts words", partial(on_policy, steps=45, **LONG), "the reward pays for length",
         "the same, less a length penalty of as much", partial(on_policy, steps=45, **LONG, length_penalty=0.25), too_long),
    Case("D11", "missing EOS handling: a cut answer costs nothing, its EOS counts as a bad word",
         partial(on_policy, steps=25, **ENDLESS, missing_eos_penalty=0.0, learning_rate=3e-3), "missing_eos_penalty is 0",
         "the same with a penalty of 2", partial(on_policy, steps=25, **ENDLESS, missing_eos_penalty=2.0), cut_off),
    Case("D12", "a reward that pays for repetition",
         partial(on_policy, steps=25, **AGAIN, learning_rate=5e-3), "the reward pays for it",
         "the same with beta 2", partial(on_policy, steps=25, **AGAIN, beta=2.0), repeated),
    Case("D13", "wrong sign of the reward",
         partial(on_policy, steps=30, weight=-1.0, judge=Scored(kind), learning_rate=1e-3), "wrong way",
         "a reward of half the judge's size", partial(on_policy, steps=30, weight=0.5, judge=Scored(kind)), judge_fallen),
    Case("D14", "beta 0 against an ensemble of three", partial(ensemble, beta=0.0, learning_rate=1e-2),
         "left what the reward models know", "the same with beta 0.5", partial(ensemble, beta=0.5), disagreeing),
    Case("D15", "a constant reward from step 10 on",
         partial(on_policy, steps=15, score=Scored(kind, half, 10)), "the reward is constant",
         "a reward that is either 0 or 1", partial(on_policy, steps=15, score=Scored(passed)), since(10)),
    Case("D16", "the critic's steps x 10,000", partial(on_policy, steps=35, inject=partial(critic_rate, 1e4)),
         "the critic's steps are too large", "the critic's steps x 2",
         partial(on_policy, steps=35, inject=partial(critic_rate, 2.0)),
         value_off),
    Case("D17", "DPO on pairs that differ in one word, learning rate x 100", partial(pairwise, **ALIKE, learning_rate=1e-2),
         "the learning rate is too high", "the same pairs, learning rate x 1", partial(pairwise, **ALIKE), displaced),
    Case("D18", "chosen and rejected are the same", partial(pairwise, same=True), "chosen and rejected are the same",
         "chosen and rejected differ in one word", partial(pairwise, alike=True), since(1)),
    Case("D19", "every label flipped", partial(reward_model, flipped=1.0), "swapped",
         "one label in ten flipped", partial(reward_model, flipped=0.1)),
    Case("D20", "thirty epochs, ten times the rate, three labels in ten flipped",
         partial(reward_model, flipped=0.3, **LEARNT_BY_HEART), "over-confident",
         "the same labels, early stopping", partial(reward_model, flipped=0.3)),
    Case("D25", "the reward waits from step 30 on", partial(on_policy, steps=36, score=Scored(kind, slow, 30)), "another process",
         "the reward waits in step 30", partial(on_policy, steps=36, score=Scored(kind, slow, 30, 30)), since(30)),
    Case("D26", "a bit of a weight flips in the checkpoint of step 30", partial(resumed, flip=True), "a damaged state",
         "the same interruption, no flip", partial(resumed, flip=False), since(31)),
)  # fmt: skip

SEEDS = (1, 2, 3, 4, 5)
HEALTHY: dict[str, Callable[[Path, int], Record]] = {
    "PPO": lambda place, seed: on_policy(place, seed, judge=Scored(kind)),
    "GRPO": lambda place, seed: on_policy(place, seed, method="grpo", samples_per_prompt=4, batch_size=16),
    "PPO, ensemble of three": lambda place, seed: ensemble(place, seed),
    "DPO": lambda place, seed: pairwise(place, seed),
    "SFT": lambda place, seed: demonstrated(place, seed),
    "reward model": lambda place, seed: reward_model(place, seed),
}
