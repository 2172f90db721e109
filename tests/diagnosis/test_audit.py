"""Which stage is at fault, and why a reward jumped: on figures and texts made by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.diagnosis import Record
from pipelines.diagnosis.attribution import attribute, template_failures
from pipelines.diagnosis.audit import Known, audit
from pipelines.diagnosis.spikes import analyse, first_spike
from tests.diagnosis.histories import at, on_policy

GOOD_SFT = {"eos_rate": 0.8, "loss": 2.0, "eval_loss": 2.1}
GOOD_REWARD = {
    "pair_accuracy": 0.78,
    "longer_wins": 0.5,
    "calibration_error": 0.05,
    "gold_rank_correlation": 0.6,
    "label_agreement": 0.9,
}
BETTER = {"win_rate_ci": [0.6, 0.7], "reward_win_rate_ci": [0.6, 0.8], "kl": 3.0}
MISLED = {"win_rate_ci": [0.35, 0.48], "reward_win_rate_ci": [0.6, 0.8], "kl": 3.0}
STUCK = {"win_rate_ci": [0.45, 0.55], "reward_win_rate_ci": [0.46, 0.56], "kl": 0.02}


def metrics(own: dict[str, Any], sft: dict[str, Any] = GOOD_SFT, reward: dict[str, Any] = GOOD_REWARD) -> dict[str, Any]:
    return {"sft": sft, "reward": reward, "policies": {"mine": own}}


@pytest.mark.parametrize(
    ("own", "sft", "reward", "method", "stage"),
    [
        (BETTER, GOOD_SFT, GOOD_REWARD, "on_policy", ""),
        (MISLED, GOOD_SFT, GOOD_REWARD | {"pair_accuracy": 0.52}, "on_policy", "reward model"),
        (MISLED, GOOD_SFT, GOOD_REWARD | {"longer_wins": 0.77}, "on_policy", "reward model"),
        (MISLED, GOOD_SFT, GOOD_REWARD | {"gold_rank_correlation": 0.1}, "on_policy", "reward model"),
        (MISLED, GOOD_SFT, GOOD_REWARD | {"label_agreement": 0.1, "pair_accuracy": 0.9}, "on_policy", "labels"),
        (MISLED, GOOD_SFT, GOOD_REWARD, "on_policy", "reward model"),  # no figure stands out, but it was won by the proxy alone
        (MISLED, GOOD_SFT, GOOD_REWARD | {"pair_accuracy": 0.52}, "offline", ""),  # DPO never met the reward model
        (STUCK, GOOD_SFT, GOOD_REWARD, "on_policy", "policy optimisation"),
        (STUCK, GOOD_SFT | {"eos_rate": 0.1}, GOOD_REWARD, "on_policy", "sft"),
        (STUCK, GOOD_SFT | {"eval_loss": 2.8}, GOOD_REWARD, "on_policy", "sft"),
        (STUCK, GOOD_SFT | {"template_failures": 0.3}, GOOD_REWARD, "on_policy", "sft"),
    ],
)
def test_the_stage_at_fault(own: dict, sft: dict, reward: dict, method: Any, stage: str) -> None:
    found = attribute("mine", method, metrics(own, sft, reward), [])
    assert found.stage == stage
    assert found.disappoints == (own is not BETTER)
    if stage and own is MISLED and reward is not GOOD_REWARD:
        assert stage in found.why
        assert "wanted" in found.why


def test_a_template_that_was_missed() -> None:
    texts = [
        " I come, my lord.",
        " Good night.\nROMEO: Sleep dwell upon thine eyes",
        " So be it.<|im_start|>user",
        " THE END\nof it",
    ]
    assert template_failures(texts) == 0.5
    assert template_failures([]) == 0.0


def test_an_audit_as_machines_read_it() -> None:
    """The KL of 12 with beta 0 is an alarm: it blocks. The policy disappoints, and its own alarm is among the figures."""
    frame = on_policy(**{"objective/kl": at(30, 12.0, 4.0), "beta": 0.0})
    known = Known({"sft": pd.DataFrame({"step": [1], "loss": [2.0], "eval_loss": [2.1]}), "mine": frame}, metrics(STUCK))
    made = json.loads(json.dumps(audit(known).as_json(), allow_nan=False))
    assert made["blocking"] == ["mine: D4 KL to the reference"]
    (finding,) = made["findings"]["mine"]
    assert {"signal", "value", "limit", "first_step", "evidence", "causes", "remedy", "blocks"} <= set(finding)
    assert (finding["first_step"], finding["value"], finding["limit"], finding["blocks"]) == (30, 12.0, 10.0, True)
    assert made["attributions"]["mine"]["stage"] == "policy optimisation"
    assert "D4 KL to the reference" in [figure["what"] for figure in made["attributions"]["mine"]["figures"]]
    assert made["findings"]["sft"] == []


def test_a_number_that_json_has_not() -> None:
    """A value loss that is infinite for good: found (D1, D16), and still readable by machines."""
    frame = on_policy(**{"loss/value": at(25, float("inf"), 0.2)})
    made = json.loads(json.dumps(audit(Known({"mine": frame})).as_json(), allow_nan=False))
    values = {one["detector"]: one["value"] for one in made["findings"]["mine"]}
    assert values["D16"] is None
    assert values["D1"] == 2.0


def spiked(**columns: Any) -> Record:
    """Scores that creep by 0.01 a step and jump by 2 at step 30."""
    scores = [0.01 * step + (2.0 if step >= 30 else 0.0) + 0.002 * (step % 3) for step in range(1, 41)]
    return Record("on_policy", on_policy(**({"objective/scores": scores} | columns)))


def texts(best: str) -> pd.DataFrame:
    """100 answers; the five best-scored ones are ``best``."""
    others = [f" well my lord {n} {n % 7}" for n in range(5, 100)]
    rows = {"text": [f" {best} {n}" for n in range(5)] + others, "reward": [5.0] * 5 + [0.1] * 95}
    return pd.DataFrame({"prompt": "p", "ended": True} | rows)


def test_where_the_reward_jumped() -> None:
    assert first_spike(spiked()) == 30
    assert first_spike(Record("on_policy", on_policy())) is None
    assert first_spike(Record("on_policy", on_policy(5))) is None


def test_the_eight_questions_in_their_order() -> None:
    """Nothing is known: six times unknown; KL, entropy and value are in the history and quiet."""
    found = analyse(spiked(), 30, None)
    assert [step.question[:2] for step in found.steps] == [f"{n}." for n in range(1, 9)]
    assert [step.suspicious for step in found.steps] == [None, None, False, None, None, None, False, False]
    assert found.cause == ""


@pytest.mark.parametrize(
    ("number", "columns", "changed"),
    [
        (1, {}, ["artifacts/reward"]),
        (2, {"judge/held_out": 0.5, "judge/held_out_se": 0.05}, []),
        (3, {"objective/length_correlation": 0.8, "tokens/response_length": at(30, 20.0, 12.0)}, []),
        (4, {"reward/disagreement": at(30, 0.5, 0.2)}, []),
        (7, {"objective/entropy": at(30, 0.5, 2.0)}, []),
        (8, {"val/explained_variance": at(30, -0.5, 0.5)}, []),
    ],
)
def test_the_first_bad_answer_is_the_cause(number: int, columns: dict[str, Any], changed: list[str]) -> None:
    found = analyse(spiked(**columns), 30, changed)
    assert [step.question[0] for step in found.steps if step.suspicious] == [str(number)]
    assert found.cause.startswith(f"{number}. ")


def test_a_judge_that_follows_is_no_suspicion() -> None:
    columns = {"judge/held_out": at(30, 1.0, 0.5), "judge/held_out_se": 0.05}
    step = analyse(spiked(**columns), 30, []).steps[1]
    assert step.suspicious is False
    assert step.answer.startswith("up")


def test_what_the_best_answers_share_and_the_counterfactual() -> None:
    """The five best answers begin with three words that no other has; scored without them they lose everything."""

    def rescore(prompts: Any, answers: Any) -> list[float]:
        return [5.0 if "most gracious lord" in text else 0.5 for text in answers]

    found = analyse(spiked(), 30, [], texts("most gracious lord"), rescore)
    assert "'most gracious lord'" in found.steps[4].answer
    assert found.steps[4].suspicious
    assert found.steps[5].suspicious
    assert found.steps[5].answer == "scored again without it: 5 -> 0.5"
    common = analyse(spiked(), 30, [], texts("well my lord"), rescore)
    assert common.steps[4].suspicious is False, "what all answers hold explains nothing"
    assert common.steps[5].suspicious is None


def test_a_finding_is_asked_where_no_jump_stands_out() -> None:
    frame = on_policy(**{"objective/entropy": at(20, 0.15, 2.0), "objective/scores": np.linspace(0, 1, 40)})
    made = audit(Known({"mine": frame}))
    assert made.spikes["mine"].step == 20
