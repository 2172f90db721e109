"""Which action is taken: the order, the limit of three, the pause; and what it does to a run that really trains."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pipelines.config.policies import Diagnosis
from pipelines.context import Worker
from pipelines.diagnosis import Finding
from pipelines.diagnosis.actions import DONE, ORDER, choose
from pipelines.errors import PrefloopError
from pipelines.journal import Journal, read_from
from pipelines.training.ppo import my_prompts
from tests.diagnosis import faults
from tests.diagnosis.faults import Scored, kind, loss_times, on_policy
from tests.training import onpolicy
from tests.training.onpolicy import CountReward, Fault, Poison, alone, final_state, job, outcome, params, weights
from tests.training.processes import in_own_process, two


def asking(action: Any, detector: str = "D8", step: int = 20) -> Finding:
    """A finding that is true at ``step`` and asks for an action."""
    return Finding(detector, "signal", "alarm", 0.5, 0.3, step - 4, step, 5, "evidence", ("cause",), "remedy", action)


def taken(action: str, detector: str = "D8", step: int = 1) -> dict[str, Any]:
    """An action of before."""
    return {"step": step, "detector": detector, "action": action, "after": step}


def chosen(findings: list[Finding], *before: dict[str, Any], step: int = 20) -> tuple[str, str] | None:
    """Detector and action."""
    found = choose(findings, step, before)
    return (found.detector, found.action) if found else None


def test_the_order_of_actions() -> None:
    """Adapt, then roll back, then stop; the strongest demand of several goes first."""
    assert chosen([asking("lower_rate")]) == ("D8", "lower_rate")
    assert chosen([asking("lower_rate")], taken("lower_rate")) == ("D8", "roll_back")
    assert chosen([asking("lower_rate")], taken("lower_rate"), taken("roll_back", step=8)) == ("D8", "stop")
    assert chosen([asking("lower_rate")], taken("lower_rate", "D3")) == ("D8", "lower_rate"), "another detector's does not count"
    assert chosen([asking("lower_rate"), asking("roll_back", "D9")]) == ("D9", "roll_back")


def test_three_at_the_most_with_a_pause_and_only_on_what_is_true_now() -> None:
    three = [taken("skip", "D2", 1), taken("skip", "D2", 2), taken("skip", "D2", 3)]
    assert chosen([asking("stop", "D5")], *three) is None
    assert chosen([asking("lower_rate")], taken("raise_beta", "D4", 16)) is None
    assert chosen([asking("lower_rate")], taken("raise_beta", "D4", 15)) == ("D8", "lower_rate")
    assert chosen([asking("lower_rate", step=19)]) is None
    assert chosen([asking("")]) is None


def test_every_action_that_leaves_a_result_has_words() -> None:
    assert set(DONE) == set(ORDER) - {"", "stop"}


ACT = {"diagnosis": Diagnosis(act=True)}


def notes(place: Path) -> list[str]:
    """What the journal says of actions."""
    return [line["note"] for line in read_from(place / "journal.jsonl", 0)[0] if line["note"].startswith("action")]


def test_reporting_only_changes_nothing_and_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    """With and without ``act``, the same weights and the same history to the bit: nothing was found, nothing was done."""
    for name, changes in (("off", {}), ("on", ACT)):
        on_policy(tmp_path / name, steps=6, **changes)
    for file in ("history.parquet", "metrics.json", "model/model.safetensors"):
        assert (tmp_path / "off" / "out" / file).read_bytes() == (tmp_path / "on" / "out" / file).read_bytes()
    assert notes(tmp_path / "on") == []


@pytest.mark.slow
def test_a_spike_is_skipped_before_it_touches_the_weights(tmp_path: Path) -> None:
    """The loss of step 25 is multiplied by 10,000. Acting, its batch is left out: step 26 starts from the weights after 24."""
    record = on_policy(tmp_path, steps=26, inject=partial(loss_times, 1e4, 25), **ACT)
    assert 25 not in record.history["step"].tolist()
    assert record.history["diagnosis/actions"].tolist() == [0.0] * 24 + [1.0]
    assert [json.loads((tmp_path / "out" / "actions.json").read_text())[0][key] for key in ("step", "action")] == [25, "skip"]
    (said,) = notes(tmp_path)
    assert said.startswith("action 1 of 3, skip: step 25: gradient norm")


@pytest.mark.slow
def test_a_rate_that_is_too_high_is_halved_first(tmp_path: Path) -> None:
    """x 100: D3 holds three steps in a row, so the rate is halved; three actions are taken at most."""
    with contextlib.suppress(PrefloopError):
        on_policy(tmp_path, steps=40, save_steps=2, **(faults.FAST | ACT))
    said = notes(tmp_path)
    assert 1 <= len(said) <= 3
    assert said[0].startswith("action 1 of 3, lower_rate")
    assert "the learning rate is now 0.5 of the scheduled" in said[0]
    steps = [int(note.partition(": step ")[2].partition(":")[0]) for note in said]
    lines = read_from(tmp_path / "journal.jsonl", 0)[0]
    rates = {line["step"]: line["metrics"]["learning_rate"] for line in reversed(lines) if line["metrics"]}  # the first time
    assert (rates[steps[0]], rates[steps[0] + 1]) == (3e-2, 1.5e-2)


@pytest.mark.slow
def test_a_judge_that_falls_ends_the_run_where_it_still_stood(tmp_path: Path) -> None:
    """The reward turns round at step 21, the judge stays. The run ends with the last checkpoint from before the fall."""

    def turned(answer: Any) -> float:
        return 2.0 - kind(answer)

    record = on_policy(
        tmp_path, steps=60, save_steps=5, score=Scored(kind, turned, 21), judge=Scored(kind), learning_rate=1e-3, **ACT
    )
    last = int(record.history["step"].iloc[-1])
    said = notes(tmp_path)
    assert said[-1].startswith(f"action {len(said)} of 3, finish")
    assert last < 60
    assert f"rolled back to step {last}" in said[-1]


@pytest.mark.slow
def test_a_run_that_was_cut_decides_the_same_again(tmp_path: Path) -> None:
    """Cut in step 4 and resumed: the same actions, the same history or the same last words as without the cut."""
    settings = {"steps": 24, "save_steps": 2, "beta": 0.0, "learning_rate": 5e-3, "kl_target": 0.5} | ACT
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sft = onpolicy.make_folder(tmp_path / "sft")
    score = onpolicy.Fault("raise", 10**6, tmp_path / "never")
    ends = []
    for place, reward in ((whole, score), (cut, onpolicy.Fault("raise", 4, tmp_path / "fired"))):
        place.mkdir()
        for _ in range(2):
            try:
                on_policy(place, score=reward, sft=sft, **settings)  # type: ignore[arg-type]
                ends.append(pd.read_parquet(place / "out" / "history.parquet").to_json())
                break
            except RuntimeError:
                continue
            except PrefloopError as error:
                ends.append(str(error))
                break
    assert (tmp_path / "fired").exists()
    assert ends[0] == ends[1]
    assert notes(whole), "something was done"


@dataclass(frozen=True)
class Cut:
    """CountReward, but one call of one opening fails: a roll back opens the rewards anew, and the run is cut behind it."""

    opening: int
    call: int
    opened: list[int] = field(default_factory=list)

    def open(self, tokenizer: Any, device: str) -> Any:
        """Count the openings, and the calls of this one: the probe before training is call 0."""
        self.opened.append(len(self.opened) + 1)
        honest, mine, calls = CountReward().open(tokenizer, device), self.opened[-1], [0]

        def scores(prompts: Sequence[list[int]], answers: Sequence[list[int]], ended: Sequence[bool]) -> list[float]:
            if (mine, calls[0]) == (self.opening, self.call):
                raise RuntimeError("the cut that was asked for")
            calls[0] += 1
            return honest(prompts, answers, ended)

        return scores


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onpolicy.make_folder(tmp_path_factory.mktemp("sft"))


def turning(save_steps: int, steps: int) -> Any:
    """A rate so high, and a KL target so low, that step 2 is beyond five times the target (D4): rolled back. After that there
    is a pause of five steps."""
    return params(steps=steps, save_steps=save_steps, kl_target=0.001, adapter="none", learning_rate=1e-2, **ACT)


def done(task: Any) -> list[tuple[int, str, str]]:
    """Step, detector and action of what a finished run has done."""
    return [(one["step"], one["detector"], one["action"]) for one in json.loads((task.out / "actions.json").read_text())]


@pytest.mark.parametrize(
    ("save_steps", "steps", "call"),
    [
        (1, 5, 1),  # the newest checkpoint is the one that the roll back has written
        (1, 5, 3),  # it is one that was written after it
        (9, 4, 2),  # rolled back to the beginning: nothing was written, and everything is decided once more
    ],
)
def test_a_run_that_was_cut_after_a_roll_back_ends_with_the_same_bits(
    sft: Path, tmp_path: Path, save_steps: int, steps: int, call: int
) -> None:
    whole, cut = (job(sft, tmp_path / name, turning(save_steps, steps), reward)
                  for name, reward in (("whole", CountReward()), ("cut", Cut(2, call))))  # fmt: skip
    alone(whole)
    assert done(whole) == [(2, "D4", "roll_back")]
    (tmp_path / "cut").mkdir()
    with pytest.raises(RuntimeError, match="asked for"):
        alone(cut, tmp_path / "cut" / "journal.jsonl")
    (said,) = notes(tmp_path / "cut")
    assert said.startswith("action 1 of 3, roll_back: step 2: D4"), "it was cut behind the roll back"
    alone(cut)
    assert done(cut) == done(whole)
    assert final_state(cut) == final_state(whole)
    assert outcome(cut) == outcome(whole)


def test_a_batch_that_is_not_finite_leaves_the_rate_as_it_was_set(sft: Path, tmp_path: Path) -> None:
    """One of 16 prompts is poisoned: met in step 1 (left out) and again in step 7 or 8 (rolled back to the beginning). Between
    them the rate is halved, because the steps move too far (D3); it stays halved when they are taken once more."""
    prompts = [[2 + n % 10, 3 + n // 10] for n in range(16)]
    fast = {"adapter": "none", "learning_rate": 2e-2, "lr_scheduler_type": "constant"}
    settings = params(steps=8, batch_size=4, save_steps=100, **fast, **ACT)
    worker = Worker(0, 1, "cpu", Journal(None))
    asked = {step: my_prompts(job(sft, tmp_path, settings, prompts=prompts), worker, step)[0] for step in (1, 7, 8)}
    twice = next(prompt for prompt in asked[1] if prompt in asked[7] + asked[8])
    task = job(sft, tmp_path, settings, Poison((tuple(twice),)), prompts)
    alone(task)
    assert [(detector, action) for _, detector, action in done(task)] == [
        ("D1", "skip"), ("D3", "lower_rate"), ("D1", "roll_back")
    ]  # fmt: skip
    assert pd.read_parquet(task.out / "history.parquet")["learning_rate"].tolist() == [1e-2] * 6


@pytest.mark.slow
def test_two_workers_act_alike(sft: Path, tmp_path: Path) -> None:
    """Both see the same history, so both roll back, and go on with the same rate and beta: the steps of one worker to 1e-5."""
    one, both = (job(sft, tmp_path / name, turning(1, 4)) for name in ("one", "both"))
    alone(one)
    assert two(both, tmp_path / "both") == [0, 0]
    assert done(both) == done(one) == [(2, "D4", "roll_back")]
    figures = [pd.read_parquet(task.out / "history.parquet") for task in (one, both)]
    pd.testing.assert_frame_equal(figures[0], figures[1], atol=1e-5, rtol=1e-5)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(both)[name], weight, atol=1e-5, rtol=0, msg=name)


@pytest.mark.slow
def test_a_worker_of_two_that_is_killed_after_a_roll_back(sft: Path, tmp_path: Path) -> None:
    """Rank 1 dies in the third step behind the roll back; both are started again and end with the bits of an uninterrupted
    pair."""
    whole = job(sft, tmp_path / "whole", turning(2, 4))
    assert two(whole, tmp_path / "whole") == [0, 0]
    honest, doomed = (
        job(sft, tmp_path / "cut", turning(2, 4), reward) for reward in (None, Fault("kill", 3, tmp_path / "fired"))
    )
    pair = [in_own_process(honest, tmp_path / "cut", 0, 2), in_own_process(doomed, tmp_path / "cut", 1, 2)]
    assert pair[1].wait(timeout=120) != 0
    assert pair[0].wait(timeout=120) != 0, "a worker whose peer died must not end well"
    assert (tmp_path / "fired").exists()
    assert [note[:26] for note in notes(tmp_path / "cut")] == ["action 1 of 3, roll_back: "], "it had rolled back before"
    assert two(honest, tmp_path / "cut") == [0, 0]
    assert final_state(honest) == final_state(whole)
    assert outcome(honest) == outcome(whole)
