"""Where a policy disappoints: which stage is at fault, and by which figures. Pure: figures in, a verdict out.

Each stage has one job that can be measured. SFT speaks the language and ends its answers. The reward model ranks answers as
the judge does. Policy optimisation raises the reward model's score without leaving the language. The first job that was not
done is named; the figures of all three are shown, so that a person can disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.diagnosis.finding import Finding, Method

Stage = Literal["sft", "reward model", "labels", "policy optimisation"]

MIN_EOS, MAX_TEMPLATE_FAILURES, MAX_LOSS_GAP = 0.6, 0.05, 0.5
MIN_ACCURACY, MIN_AGREEMENT, LEAST_OVER_LENGTH, MAX_CALIBRATION = 0.6, 0.3, 0.03, 0.1
LEAST_KL = 0.1
MISLED: tuple[Stage, ...] = ("labels", "reward model", "sft", "policy optimisation")
FAILED: tuple[Stage, ...] = ("sft", "policy optimisation", "labels", "reward model")
NEXT_TURN = re.compile(r"\n[A-Z][A-Z .']{2,}:|<\|")


@dataclass(frozen=True)
class Figure:
    """One figure of a stage: value, limit, whether it holds; ``value`` None = not measured."""

    stage: Stage
    what: str
    value: float | None
    limit: str
    good: bool


@dataclass(frozen=True)
class Attribution:
    """``stage``: at fault, "" where the policy does not disappoint or nothing stands out. ``why``: one sentence."""

    policy: str
    disappoints: bool
    stage: Stage | Literal[""]
    why: str
    figures: tuple[Figure, ...]


def attribute(policy: str, method: Method, metrics: Mapping[str, Any], findings: Sequence[Finding]) -> Attribution:
    """Which stage is at fault for ``policy``. ``metrics``: as in report/metrics.json; ``findings``: those of its training.

    The proxy divides the blame. Where the policy has won by the reward model and not by the judge, the reward model or its
    labels misled it. Where it has not even won by the reward model, the optimisation failed, unless SFT gave it no ground.
    """
    own = metrics["policies"][policy]
    figures = (*of_sft(metrics["sft"]), *of_reward(metrics["reward"], method), *of_policy(own, findings))
    if own["win_rate_ci"][0] > 0.5:
        return Attribution(policy, False, "", f"{policy} surely beats the SFT model: nothing to attribute", figures)
    won_by_proxy = own["reward_win_rate_ci"][0] > 0.5
    side = "won by the reward model, not by the judge" if won_by_proxy else "did not even win by the reward model"
    for stage in MISLED if won_by_proxy else FAILED:
        failing = [figure for figure in figures if figure.stage == stage and not figure.good]
        if failing:
            shown = "; ".join(f"{one.what} {one.value:.3g}, wanted {one.limit}" for one in failing)
            return Attribution(policy, True, stage, f"{policy} {side}: {stage} ({shown})", figures)
    if won_by_proxy and method == "on_policy":
        why = f"{policy} {side}: reward model (it likes the policy's answers, the judge does not)"
        return Attribution(policy, True, "reward model", why, figures)
    return Attribution(policy, True, "", f"{policy} {side}, and no figure stands out: more steps, more data", figures)


def of_sft(sft: Mapping[str, Any]) -> tuple[Figure, ...]:
    """Does SFT speak and end? ``sft``: its evaluation, with ``loss`` and ``eval_loss`` of its training and template failures."""
    gap = None if sft.get("eval_loss") is None or sft.get("loss") is None else sft["eval_loss"] - sft["loss"]
    return (
        _least("sft", "answers that end by themselves", sft.get("eos_rate"), MIN_EOS),
        _most("sft", "answers that run on into another turn", sft.get("template_failures"), MAX_TEMPLATE_FAILURES),
        _most("sft", "held-out loss above training loss (nats a token)", gap, MAX_LOSS_GAP),
    )


def of_reward(reward: Mapping[str, Any], method: Method) -> tuple[Figure, ...]:
    """Do the labels follow the judge, and the reward model the labels? Offline methods learn from the labels alone."""
    accuracy, longer = reward.get("pair_accuracy"), reward.get("longer_wins")
    labels = _least("labels", "labels in the order of the known gold", reward.get("label_agreement"), MIN_ACCURACY)
    if method == "offline":
        return (labels,)
    over = None if accuracy is None or longer is None else accuracy - max(longer, 1.0 - longer)
    limit = max(MAX_CALIBRATION, float(reward.get("calibration_noise") or 0.0))
    return (
        labels,
        _least("reward model", "held-out pairs in the labelled order", accuracy, MIN_ACCURACY),
        _least("reward model", "the same, above what length alone gives", over, LEAST_OVER_LENGTH),
        _most("reward model", "expected calibration error", reward.get("calibration_error"), limit),
        _least(
            "reward model", "rank correlation with the judge on SFT's answers", reward.get("gold_rank_correlation"), MIN_AGREEMENT
        ),
    )


def of_policy(own: Mapping[str, Any], findings: Sequence[Finding]) -> tuple[Figure, ...]:
    """Has the optimisation moved the policy, by the reward model upwards, without an alarm of KL, ratio, entropy or value?"""
    proxy = own["reward_win_rate_ci"][0]
    alarms = [one for one in findings if one.level == "alarm"]
    return (
        _least("policy optimisation", "KL to SFT (nats a sequence)", own.get("kl"), LEAST_KL),
        Figure("policy optimisation", "win rate by the reward model, lower end", proxy, "above 0.5", proxy > 0.5),
        *(Figure("policy optimisation", f"{one.detector} {one.signal}", one.value, f"{one.limit:.3g}", False) for one in alarms),
    )


def template_failures(texts: Sequence[str]) -> float:
    """Share of answers that go on into another speaker's turn or hold a mark of the chat format: SFT missed the template."""
    return sum(bool(NEXT_TURN.search(text)) for text in texts) / len(texts) if texts else 0.0


def _least(stage: Stage, what: str, value: float | None, limit: float) -> Figure:
    return Figure(stage, what, value, f"at least {limit:g}", value is None or value >= limit)


def _most(stage: Stage, what: str, value: float | None, limit: float) -> Figure:
    return Figure(stage, what, value, f"at most {limit:.3g}", value is None or value <= limit)
