"""Each gate: passes at its bound's good side, fails at the other, and fails where nothing was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines.config_promotion import Promotion
from tasks.gates import Evidence, judged

SETTINGS = Promotion(regressions={"eos_rate": 0.1, "-repetition": 0.05}, pushed=True)
GOOD = Evidence(
    compared={
        "interval": [0.51, 0.7],
        "groups": {"a": {"prompts": 20, "interval": [0.4, 0.5]}, "few": {"prompts": 3, "interval": [0.0, 0.1]}},
        "challenger": {"eos_rate": 0.8, "repetition": 0.1},
        "opponent": {"eos_rate": 0.9, "repetition": 0.05},
    },
    against="version 1",
    policy="ppo",
    metrics={"kl": 20.0, "win_rate_ci": [0.4, 0.6], "perplexity_ratio": 1.5, "distinct_2_ratio": 0.8},
    reward={"pair_accuracy": 0.55, "log_loss": 0.6931, "calibration_error": 0.12, "calibration_noise": 0.12},
    doctor=[],
    lineage=[],
    manifest=[],
    unpushed=[],
)


def failing(seen: Evidence, settings: Promotion = SETTINGS) -> list[str]:
    return [gate.name for gate in judged(settings, seen) if not gate.passed]


def with_(part: str, **values: Any) -> Evidence:
    return replace(GOOD, **{part: {**getattr(GOOD, part), **values}})


def test_what_is_at_the_bound_passes() -> None:
    """But for the win rate, which must lie above it; a group too small to judge is left out."""
    assert failing(GOOD) == []
    assert len(judged(SETTINGS, GOOD)) == 14


@pytest.mark.parametrize(
    ("seen", "gate"),
    [
        (with_("compared", interval=[0.5, 0.7]), "win rate against version 1: lower end"),
        (with_("metrics", kl=20.1), "KL to the SFT model (nats a sequence)"),
        (with_("metrics", kl=None), "KL to the SFT model (nats a sequence)"),
        (with_("metrics", kl=float("nan")), "KL to the SFT model (nats a sequence)"),
        (with_("reward", pair_accuracy=0.54), "reward model: held-out pairs in order"),
        (with_("reward", log_loss=0.7), "reward model: log loss on held-out pairs"),
        (with_("reward", calibration_error=0.13), "reward model: calibration error on held-out pairs"),
        (with_("reward", calibration_noise=0.02), "reward model: calibration error on held-out pairs"),
        (with_("reward", calibration_error=None), "reward model: calibration error on held-out pairs"),
        (with_("compared", challenger={"eos_rate": 0.79, "repetition": 0.1}), "eos_rate against version 1"),
        (with_("compared", challenger={"eos_rate": 0.9, "repetition": 0.11}), "repetition against version 1"),
        (with_("compared", challenger={"eos_rate": 0.9}), "repetition against version 1"),
        (
            with_("compared", groups={"b": {"prompts": 10, "interval": [0.1, 0.49]}}),
            "win rate in group b: upper end (worst of 1)",
        ),
        (with_("metrics", perplexity_ratio=1.51), "reads as English: perplexity against SFT's"),
        (with_("metrics", distinct_2_ratio=0.79), "stays varied: distinct-2 against SFT's"),
        (replace(GOOD, doctor=["ppo: D10 length exploit"]), "doctor"),
        (replace(GOOD, lineage=["no tag"]), "lineage"),
        (replace(GOOD, unpushed=["no remote"]), "pushed"),
        (replace(GOOD, manifest=["config.json"]), "manifest"),
    ],
)
def test_what_is_beyond_the_bound_fails(seen: Evidence, gate: str) -> None:
    assert failing(seen) == [gate]


def test_a_group_may_not_pay_for_the_others() -> None:
    """The worst group counts: b has lost 0.25 of its EOS rate, a nothing; c is too small to be judged; d was not measured."""
    settings = SETTINGS.model_copy(update={"group_regressions": {"eos_rate": 0.2}})
    figures = {"a": (20, 0.9, 0.9), "b": (10, 0.65, 0.9), "c": (9, 0.0, 0.9)}
    groups = {
        name: {"prompts": prompts, "interval": [0.4, 0.6], "challenger": {"eos_rate": ours}, "opponent": {"eos_rate": theirs}}
        for name, (prompts, ours, theirs) in figures.items()
    }
    [gate] = [gate for gate in judged(settings, with_("compared", groups=groups)) if not gate.passed]
    assert (gate.name, gate.value, gate.bound) == ("eos_rate against version 1 in group b (worst of 2)", -0.25, "at least -0.2")
    groups["b"]["challenger"]["eos_rate"] = 0.7
    assert failing(with_("compared", groups=groups), settings) == [], "at the bound"
    groups["d"] = {**groups["a"], "challenger": {}}
    assert failing(with_("compared", groups=groups), settings) == ["eos_rate against version 1 in group d (worst of 3)"]


def test_a_gate_may_be_left_out() -> None:
    bare = Promotion(min_win_rate=None, max_kl=None, min_pair_accuracy=None, max_log_loss=None, max_calibration_error=None,
                     regressions={}, max_group_loss=None, checks=False)  # fmt: skip
    assert [gate.name for gate in judged(bare, GOOD)] == ["lineage", "manifest"]
