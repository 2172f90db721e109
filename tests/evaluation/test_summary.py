"""The verdict and the table, from figures alone."""

import subprocess
import sys
from typing import Any

import pytest

from pipelines.evaluation import summary


def _policy(rate: float, low: float, high: float, **changes: float) -> dict[str, Any]:
    figures = {
        "gold_mean": 0.3,
        "reward_mean": 1.0,
        "kl": 2.5,
        "win": rate - 0.1,
        "tie": 0.2,
        "lose": 0.9 - rate,
        "win_rate": rate,
    }
    more = {"win_rate_ci": [low, high], "length": 12.0, "eos_rate": 0.8, "perplexity": 50.0, "perplexity_ratio": 1.25}
    return figures | more | {"distinct_2_ratio": 0.95, "reward_win_rate_ci": [0.6, 0.8]} | changes


def _metrics(**policies: dict[str, Any]) -> dict[str, Any]:
    sft = {"gold_mean": 0.1, "reward_mean": 0.0, "kl": 0.0, "length": 11.0, "eos_rate": 0.75, "perplexity": 40.0}
    return {
        "sft": sft,
        "reward": {"pair_accuracy": 0.725, "pair_accuracy_ceiling": 0.95, "longer_wins": 0.5},
        "policies": policies,
    }


BETTER, UNSURE, WORSE = _policy(0.7, 0.64, 0.76), _policy(0.52, 0.45, 0.59), _policy(0.3, 0.25, 0.36)


@pytest.mark.parametrize(
    ("policies", "claim"),
    [
        ({"ppo": BETTER}, "ppo beats the SFT model: ppo wins 70 % of the comparisons (95 % interval 64 to 76)."),
        ({"ppo": UNSURE}, "ppo is not surely different from the SFT model: ppo wins 52 %"),
        ({"ppo": WORSE}, "ppo is worse than the SFT model: ppo wins 30 %"),
        (
            {"a": BETTER, "b": BETTER},
            "Both policies beat the SFT model: a wins 70 % of the comparisons (95 % interval 64 to 76) and b 70 %",
        ),
        ({"a": BETTER, "b": UNSURE}, "a beats the SFT model, b not surely: a wins"),
        ({"a": BETTER, "b": WORSE, "c": BETTER}, "a and c beat the SFT model, b is worse: a wins"),
        ({"a": UNSURE, "b": WORSE}, "None of the 2 policies surely beats the SFT model: a wins"),
        ({"a": WORSE, "b": WORSE}, "Both policies are worse than the SFT model: a wins"),
        ({}, "No policy was trained"),
    ],
)
def test_the_verdict(policies: dict[str, Any], claim: str) -> None:
    assert summary.verdict(_metrics(**policies)).startswith(claim)


def test_many_policies_name_the_best_only() -> None:
    policies = {f"p{i}": _policy(0.6 + i / 100, 0.55, 0.7) for i in range(6)}
    sentence = summary.verdict(_metrics(**policies))
    assert sentence == "All 6 policies beat the SFT model: p5 wins 65 % of the comparisons (95 % interval 55 to 70)."


def test_the_verdict_says_what_a_win_was_paid_for() -> None:
    bland, garbled = _policy(0.9, 0.85, 0.95, distinct_2_ratio=0.4), _policy(0.9, 0.85, 0.95, perplexity_ratio=2.0)
    assert summary.verdict(_metrics(a=bland)).endswith("(95 % interval 85 to 95); but a repeats itself across prompts.")
    sentence = summary.verdict(_metrics(a=bland, b=bland, c=garbled))
    assert sentence.endswith("; but c reads less like English and each of a and b repeats itself across prompts.")
    assert summary.verdict(_metrics(a=WORSE)).endswith("; but a pleases the reward model alone.")
    assert "but" not in summary.verdict(_metrics(a=BETTER, b=UNSURE))


def test_the_interval_must_be_wholly_above_one_half() -> None:
    assert summary.standing(_policy(0.6, 0.5, 0.7)) == "unsure"
    assert summary.standing(_policy(0.6, 0.501, 0.7)) == "better"
    assert summary.standing(_policy(0.4, 0.3, 0.5)) == "unsure"


def test_the_checks_hold_at_their_limits() -> None:
    good = summary.checks(_metrics(ppo=_policy(0.6, 0.51, 0.7, perplexity_ratio=1.5, distinct_2_ratio=0.8)))
    assert all(check.passed for check in good)
    assert len(good) == 5
    bad = summary.checks(_metrics(ppo=_policy(0.6, 0.5, 0.7, perplexity_ratio=1.51, distinct_2_ratio=0.79)))
    assert [check.passed for check in bad] == [True, True, False, False, False]
    without_pairs = _metrics(ppo=BETTER) | {"reward": {}}
    assert [check.subject for check in summary.checks(without_pairs)] == ["SFT", "ppo", "ppo", "ppo"]
    assert "unknown" in summary.reward_line(without_pairs)


def test_the_markdown_table_is_whole_and_escaped() -> None:
    lines = summary.markdown(_metrics(**{"my_ppo": BETTER, "dpo": UNSURE})).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 3
    assert {line.count("|") for line in table} == {len(summary.COLUMNS) + 1}
    assert table[2].startswith("| my\\_ppo | 70.0 % | 64.0 % to 76.0 % | 60 / 20 / 20 | +0.300 | 2.50 |")
    assert table[-1].startswith("| SFT (baseline) | - |")
    assert "72.5 % of held-out pairs" in lines[-1]


def test_the_plain_table_is_aligned() -> None:
    lines = summary.plain(_metrics(ppo=BETTER)).splitlines()[2:6]
    assert max(map(len, lines)) <= 120
    assert lines[1].startswith("----")
    assert lines[2].index("70.0 %") + len("70.0 %") == lines[0].index("win rate") + len("win rate")


def test_it_imports_fast() -> None:
    """The flow reads the summary: neither torch nor pandas nor matplotlib comes with it."""
    heavy = ("torch", "pandas", "matplotlib", "numpy")
    code = f"import sys, pipelines.evaluation.summary; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
