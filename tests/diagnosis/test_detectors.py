"""Every detector on histories worked by hand: when it speaks, at which step, and when it does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.diagnosis import DETECTORS, Record, detector_of, examine, method_of
from pipelines.diagnosis.anyrun import gradient_limit
from pipelines.diagnosis.windows import above_sigmas, mean_of_last, often
from tests.diagnosis.histories import NAN, at, of, on_policy, ppo


def test_a_healthy_run_says_nothing() -> None:
    assert ppo(on_policy()) == {}


def test_windows_by_hand() -> None:
    assert mean_of_last(np.array([1.0, 2.0, 6.0]), 2).tolist()[1:] == [1.5, 4.0]
    assert math.isnan(mean_of_last(np.array([1.0, 2.0, 6.0]), 2)[0])
    flags = np.array([True, False, True, True, False, True])
    assert often(flags, 2, 3).tolist() == [False, False, True, True, False, True]  # steps 3 (1, 3), 4 (3, 4), 6 (4, 6)
    flags, limits = above_sigmas(np.array([1.0, 3.0, 2.0, 100.0, 2.0]), 6.0, 128, 3)
    assert flags.tolist() == [False, False, False, True, False]
    assert limits[3] == pytest.approx(8.0)  # mean 2 + 6 x sd 1
    assert above_sigmas(np.array([1.0, 3.0, 2.0, 15.0]), 6.0, 128, 3, 10.0)[1][3] == pytest.approx(20.0)  # 10 x mean 2
    assert limits[4] == limits[3]  # the outlier is left out


@pytest.mark.parametrize(
    ("detector", "columns", "first", "level"),
    [
        # D3: 1.5 x 0.01; a single step warns, the third in a row is an alarm
        ("D3", {"policy/approxkl": at(10, 0.016, 0.004, until=10)}, 10, "warning"),
        ("D3", {"policy/approxkl": at(10, 0.016, 0.004, until=12)}, 12, "alarm"),
        ("D4", {"objective/kl": at(30, 10.1, 4.0)}, 30, "warning"),
        ("D4", {"objective/kl": at(30, 10.1, 4.0), "beta": 0.0}, 30, "alarm"),
        # D5: below 0 by 2 x 0.2 in 3 of 5: steps 7, 8 and 10
        ("D5", {"objective/kl": [-0.5 if step in (7, 8, 10) else 1.0 for step in range(1, 41)]}, 10, "alarm"),
        ("D5", {"policy/surprise": at(4, -0.05, 0.0)}, 6, "alarm"),  # 5 SE below
        ("D6", {"policy/ratio": at(5, 1.2, 1.0, until=5)}, 5, "warning"),
        ("D6", {"policy/ratio": at(5, 2.5, 1.0, until=5)}, 5, "alarm"),
        ("D7", {"policy/first_ratio": at(3, 1.002, 1.0)}, 3, "alarm"),
        ("D8", {"policy/clipfrac": at(10, 0.35, 0.1)}, 14, "alarm"),
        ("D9", {"objective/entropy": at(20, 0.5, 2.0)}, 20, "warning"),
        ("D9", {"objective/entropy": at(20, 0.15, 2.0)}, 20, "alarm"),
        # D10: three steps of 24 instead of 12 tokens: mean of the last three 16, 20 (> 1.5 x 12 = 18), 24
        ("D10", {"tokens/response_length": at(20, 24.0, 12.0), "objective/length_correlation": 0.7}, 21, "alarm"),
        # D11: cut share 0.2 -> 0.6; five-step means 0.28, 0.36: above 0.3 and 0.1 more; 3 SE = 0.148
        ("D11", {"tokens/eos_rate": at(20, 0.4, 0.8)}, 21, "alarm"),
        # D12: limit max(2 x 0.05, 0.05 + 0.2) = 0.25; three-step means 0.217, 0.3
        ("D12", {"tokens/repetition": at(20, 0.3, 0.05)}, 22, "alarm"),
        ("D15", {"objective/scores_sd": at(8, 0.0, 0.5)}, 8, "warning"),
        ("D15", {"objective/scores_at_max": at(8, 0.95, 0.1)}, 8, "warning"),
        # D16: negative from the start: judged from step 21 on, ten of them at step 30
        ("D16", {"val/explained_variance": -0.5}, 30, "alarm"),
        # D16: 2 x 3 / 1 = 6 > 5, three steps after the warm-up
        ("D16", {"loss/value": 3.0}, 23, "alarm"),
    ],
)  # fmt: skip
def test_a_fault_is_found_at_its_step(detector: str, columns: dict[str, Any], first: int, level: str) -> None:
    found = ppo(on_policy(**columns))
    assert (found[detector].first_step, found[detector].level) == (first, level)
    assert set(found) == {detector}
    assert found[detector].causes
    assert found[detector].remedy


@pytest.mark.parametrize(
    "columns",
    [
        {"policy/approxkl": 0.0149},
        {"objective/kl": at(30, 9.9, 4.0)},
        {"objective/kl": [-0.5 if step in (7, 8, 13) else 1.0 for step in range(1, 41)]},  # 3, but not within 5
        {"objective/kl": -0.39},  # below 0, within 2 SE
        {"policy/surprise": -0.03},  # 3 SE
        {"policy/surprise": 0.015, "policy/surprise_se": 0.001},  # 15 SE, and nothing in nats
        {"policy/ratio": at(5, 1.09, 1.0)},
        {"policy/first_ratio": 1.0009},
        {"policy/clipfrac": [0.35 if step % 5 else 0.1 for step in range(1, 41)]},  # never five in a row
        {"objective/entropy": at(20, 0.61, 2.0)},
        {"tokens/response_length": at(20, 24.0, 12.0), "objective/length_correlation": 0.4},
        {"tokens/response_length": at(20, 17.9, 12.0), "objective/length_correlation": 0.9},
        {"tokens/eos_rate": 0.3},  # many are cut, as many as at the start
        {"tokens/eos_rate": at(20, 0.71, 0.8)},
        {"tokens/repetition": at(20, 0.14, 0.05)},
        {"objective/scores_sd": 1e-5},
        {"val/explained_variance": at(1, -0.5, 0.5, until=29)},  # nine after the warm-up
        {"grad_norm_max": [5.0 if step == 30 else 1.0 + 0.2 * (step % 2) for step in range(1, 41)]},  # below 5 means
    ],
)
def test_a_near_miss_is_none(columns: dict[str, Any]) -> None:
    assert ppo(on_policy(**columns)) == {}


def test_a_method_without_a_critic_has_no_value_function() -> None:
    """A2C's critic is watched, RLOO's loss of values that it does not have is not."""
    wrong = on_policy(**{"loss/value": 3.0})
    assert set(ppo(wrong, method="a2c")) == {"D16"}
    assert ppo(wrong, method="rloo") == {}


def test_kl_against_a_target() -> None:
    """Target 2: above 4 for 3 of 5 is an alarm that raises beta; above 10 rolls back."""
    found = ppo(on_policy(**{"objective/kl": at(10, 4.5, 2.0)}), kl_target=2.0)["D4"]
    assert (found.first_step, found.level, found.action) == (12, "alarm", "raise_beta")
    found = ppo(on_policy(**{"objective/kl": at(40, 10.5, 2.0)}), kl_target=2.0)["D4"]
    assert (found.first_step, found.action) == (40, "roll_back")


def test_the_side_of_the_surprise_is_its_cause() -> None:
    assert "top_k" in ppo(on_policy(**{"policy/surprise": -0.1}))["D5"].causes[0]
    assert "min_new_tokens" in ppo(on_policy(**{"policy/surprise": 0.1}))["D5"].causes[0]


def test_beta_0_is_the_first_cause_of_a_large_kl() -> None:
    kl = {"objective/kl": at(30, 12.0, 4.0)}
    assert ppo(on_policy(**kl, beta=0.0))["D4"].causes[0].startswith("beta is 0")
    assert ppo(on_policy(**kl))["D4"].causes[0] == detector_of("D4").causes[0]


def test_a_free_cut_is_the_first_cause_of_answers_that_do_not_end() -> None:
    cut = {"tokens/eos_rate": at(20, 0.4, 0.8)}
    assert "missing_eos_penalty is 0" in ppo(on_policy(**cut), missing_eos_penalty=0.0)["D11"].causes[0]
    assert "missing_eos_penalty is 0" not in ppo(on_policy(**cut), missing_eos_penalty=1.0)["D11"].causes[0]


def test_numbers_that_are_not_finite() -> None:
    """A row with a NaN; steps 5 and 9 missing because their batches were left out: a warning, then an alarm."""
    found = ppo(on_policy(**{"objective/scores": [NAN if step == 7 else 1.0 for step in range(1, 41)]}))["D1"]
    assert (found.first_step, found.level) == (7, "warning")
    frame = on_policy()
    frame["skipped"] = [float((step > 5) + (step > 9)) for step in frame["step"]]
    found = ppo(frame[~frame["step"].isin([5, 9])])["D1"]
    assert (found.first_step, found.level, found.value) == (9, "alarm", 2.0)
    sparse = pd.DataFrame(
        {"step": [1, 2, 3], "loss": [1.0, 0.9, 0.8], "grad_norm": [1.0, 1.0, 1.0], "eval_loss": [NAN, NAN, 0.9]}
    )
    assert of("sft", sparse) == {}


def test_spikes_of_the_gradient() -> None:
    """Steps alternate 1.0 and 1.2 (mean 1.1, sd 0.103): limit max(1.1 + 6 sd = 1.72, 5.5). Three spikes: halve the rate."""
    norms = [50.0 if step in (25, 30, 35) else 1.0 + 0.2 * (step % 2) for step in range(1, 41)]
    found = ppo(on_policy(grad_norm_max=norms))["D2"]
    assert (found.level, found.first_step, found.action) == ("alarm", 35, "lower_rate")
    assert found.limit == pytest.approx(5.5, abs=0.01)
    once = ppo(on_policy(29, grad_norm_max=norms[:29]))["D2"]
    assert (once.level, once.first_step) == ("warning", 25)
    early = [50.0 if step == 15 else 1.0 for step in range(1, 41)]
    assert "D2" not in ppo(on_policy(grad_norm_max=early)), "twenty steps are needed before one is judged"
    record = Record("on_policy", on_policy(30, grad_norm_max=[1.0 + 0.2 * (step % 2) for step in range(30)]))
    assert gradient_limit(record) == pytest.approx(5.5, abs=0.01)
    assert gradient_limit(Record("on_policy", on_policy(10))) == math.inf


def test_the_judge_falls_while_the_proxy_rises() -> None:
    """The judge rises to step 20 and then falls by 0.1 a step (SE 0.05): the mean of three is lower by 2 SE (0.082) from step 22
    on, for three evaluations at step 24."""
    judge = [0.1 * min(step, 40 - step) for step in range(1, 41)]
    columns = {"judge/held_out": judge, "judge/held_out_se": 0.05, "objective/scores": np.linspace(0, 2, 40)}
    found = ppo(on_policy(**columns))["D13"]
    assert found.level == "alarm"
    assert 23 <= found.first_step <= 25
    assert found.action == "finish"
    assert found.causes[0].startswith("over-optimisation")
    assert ppo(on_policy(**(columns | {"objective/scores": np.linspace(2, 0, 40)}))) == {}, "proxy and judge fall together"
    falling = columns | {"judge/held_out": np.linspace(0, -2, 40)}
    found = ppo(on_policy(**falling))["D13"]
    assert "wrong way" in found.causes[0]
    assert found.first_step <= 3 + 3 + 3
    ended = of("on_policy", on_policy(), figures={"win_rate_ci": [0.3, 0.4], "reward_win_rate_ci": [0.6, 0.7]})
    assert set(ended) == {"D13"}


def test_an_ensemble_that_disagrees() -> None:
    found = ppo(on_policy(**{"reward/disagreement": at(20, 0.5, 0.2)}))["D14"]
    assert found.first_step == 22  # means of three: 0.3, 0.4, 0.5 against 2 x 0.2
    assert ppo(on_policy(**{"reward/disagreement": at(20, 0.39, 0.2)})) == {}


def offline(steps: int = 30, **columns: Any) -> pd.DataFrame:
    """A healthy DPO run: chosen answers keep their -20 nats."""
    healthy = {"loss": np.linspace(0.69, 0.5, steps), "grad_norm": 1.0, "rewards/chosen": 0.0, "logps/chosen": -20.0}
    return pd.DataFrame({"step": np.arange(1, steps + 1)} | healthy | {"rewards/margins": np.linspace(0, 1, steps)} | columns)


def test_chosen_answers_become_unlikely() -> None:
    """beta 0.1: a reward of -0.5 is -5 nats of -20 under the reference: 25 %. Over five steps: 5, 10, 15, 20, 25 %."""
    fallen = {"rewards/chosen": at(10, -0.5, 0.0, 30), "logps/chosen": at(10, -25.0, -20.0, 30)}
    found = of("offline", offline(**fallen), {"beta": 0.1})["D17"]
    assert (found.first_step, found.level) == (14, "alarm")
    assert found.value == pytest.approx(0.25)
    assert of("offline", offline(**fallen), {"beta": 0.1, "method": "orpo"}) == {}, "its rewards are no ratios to a reference"
    assert of("offline", offline(**(fallen | {"rewards/margins": -0.1})), {"beta": 0.1}) == {}, "no margin grows"
    slight = {"rewards/chosen": at(10, -0.3, 0.0, 30), "logps/chosen": at(10, -23.0, -20.0, 30)}
    assert of("offline", offline(**slight), {"beta": 0.1}) == {}
    by_token = of("offline", offline(**slight), {"beta": 0.1}, figures={"chosen_tokens": 5.0})["D17"]
    assert by_token.value == pytest.approx(0.6)  # 3 nats over 5 tokens


def test_a_dead_preference_run() -> None:
    dead = {"loss": math.log(2.0), "grad_norm": 0.0, "rewards/margins": 0.0}
    found = of("offline", offline(**dead))["D18"]
    assert (found.first_step, found.action) == (20, "stop")
    assert of("offline", offline(**(dead | {"grad_norm": 1e-4}))) == {}


def test_labels_against_what_is_known_of_them() -> None:
    """9 of 10 test pairs are too few to judge; 55 of 100 may be a coin (p = 0.18), 60 are not (p = 0.028)."""
    frame = pd.DataFrame({"step": [1], "loss": [0.5], "margin": [0.1], "grad_norm": [1.0]})
    assert of("reward", frame, figures={"pair_accuracy": 0.5, "test_pairs": 10}) == {}
    assert "D19" in of("reward", frame, figures={"pair_accuracy": 0.55, "test_pairs": 100})
    assert of("reward", frame, figures={"pair_accuracy": 0.60, "test_pairs": 100}) == {}
    flipped = of("reward", frame, figures={"pair_accuracy": 0.9, "test_pairs": 100, "label_agreement": 0.1, "known_pairs": 300})
    assert flipped["D19"].causes[0] == "chosen and rejected are swapped"
    golden = of("reward", frame, figures={"golden_accuracy": {"accuracy": 0.5, "pairs": 200}})
    assert golden["D19"].causes[0] == "the labels are noise"


def test_training_pairs_learnt_by_heart() -> None:
    """Training 0.95, validation 0.7 of 200 pairs: a gap of 0.25 where 0.15 is allowed; 0.85 is no finding."""
    columns = {"loss": 0.3, "grad_norm": 1.0, "margin": 1.0, "accuracy": 0.95}
    held = [NAN] * 9 + [0.7]
    frame = pd.DataFrame({"step": np.arange(1, 11)} | columns | {"eval_accuracy": held})
    found = of("reward", frame, figures={"validation_pairs": 200})["D19"]
    assert found.causes[0].startswith("over-fitting")
    assert not found.blocks, "the best on held-out pairs is kept"
    assert of("reward", frame.assign(eval_accuracy=[NAN] * 9 + [0.85]), figures={"validation_pairs": 200}) == {}
    assert of("reward", frame, figures={"validation_pairs": 8}) == {}, "2 SE of 8 pairs are 0.32"


def test_calibration_above_its_noise() -> None:
    frame = pd.DataFrame({"step": [1], "loss": [0.5], "margin": [0.1], "grad_norm": [1.0]})
    assert "D20" in of("reward", frame, figures={"calibration_error": 0.2, "calibration_noise": 0.15})
    assert of("reward", frame, figures={"calibration_error": 0.2, "calibration_noise": 0.21}) == {}
    assert of("reward", frame, figures={"calibration_error": 0.09, "calibration_noise": 0.0}) == {}


def line(step: int, seconds: float = 1.0, note: str = "", **metrics: float) -> dict[str, Any]:
    """A line of a journal."""
    return {"step": step, "metrics": metrics, "timings": {"seconds/update": seconds, "tokens_per_second": 9.0}, "note": note}


def test_a_stall_is_three_slow_steps() -> None:
    journal = [line(step, 4.0 if step in (12, 13, 14) else 1.0) for step in range(1, 21)]
    found = of("on_policy", on_policy(20), journal=journal)["D25"]
    assert (found.first_step, found.limit) == (14, 3.0)
    short = [line(step, 4.0 if step in (12, 13) else 1.0) for step in range(1, 21)]
    assert of("on_policy", on_policy(20), journal=short) == {}


def test_a_step_that_does_not_repeat_itself() -> None:
    """Step 3 was computed before and after a resumption: equal, or not, or changed on purpose by a roll back."""
    first = [line(step, **{"objective/kl": 0.1 * step}) for step in (1, 2, 3)]
    same = [*first, line(3, **{"objective/kl": 0.1 * 3}), line(4, **{"objective/kl": 0.4})]
    assert of("on_policy", on_policy(4), journal=same) == {}
    other = [*first, line(3, **{"objective/kl": 0.31}), line(4, **{"objective/kl": 0.4})]
    assert of("on_policy", on_policy(4), journal=other)["D26"].first_step == 3
    purpose = [*first, line(3, note="action 1 of 3: rolled back to step 2"), line(3, **{"objective/kl": 0.31})]
    assert of("on_policy", on_policy(4), journal=purpose) == {}


def test_the_members_of_an_ensemble_are_trainings_of_their_own() -> None:
    """Steps 1 to 3, and from 1 on again with other numbers: two trainings. Gone on from the checkpoint of step 1, it is one."""

    def journal(*steps: tuple[int, float]) -> list[dict[str, Any]]:
        return [line(step, loss=loss) for step, loss in steps]

    frame = pd.DataFrame({"step": [1, 2, 3], "loss": [0.7, 0.6, 0.5], "grad_norm": 1.0, "margin": 0.1})
    member, other = journal((1, 0.7), (2, 0.6), (3, 0.5)), journal((1, 0.8), (2, 0.7), (3, 0.6))
    assert of("reward", frame, journal=[*member, line(1, note="scores"), *other]) == {}
    resumed = journal((1, 0.7), (2, 0.6), (2, 0.61), (3, 0.5))
    assert of("reward", frame, journal=resumed)["D26"].first_step == 2


def test_the_kind_of_a_run_is_read_from_its_columns() -> None:
    assert method_of(on_policy().columns) == "on_policy"
    assert method_of(offline().columns) == "offline"
    assert method_of(["step", "loss", "accuracy", "margin"]) == "reward"
    assert method_of(["step", "loss", "grad_norm"]) == "sft"


def test_every_row_of_the_table_is_whole() -> None:
    assert [detector.id for detector in DETECTORS] == [f"D{n}" for n in [*range(1, 21), 25, 26]]
    for detector in DETECTORS:
        assert len(detector.causes) >= 2
        assert detector.remedy
        assert detector.window >= 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=12),
    st.sampled_from(sorted(set(on_policy().columns) - {"step"})),
)
def test_no_history_breaks_a_detector(values: list[float], column: str) -> None:
    """Any numbers in any column, and a history of which columns are missing: findings, never an exception."""
    frame = on_policy(len(values), **{column: values})
    with np.errstate(all="ignore"):
        for method in ("on_policy", "offline", "reward", "sft"):
            examine(Record(method, frame))  # type: ignore[arg-type]
            examine(Record(method, frame.drop(columns=column)))  # type: ignore[arg-type]
    assert examine(Record("on_policy", frame.head(0))) == []
