"""Detectors for on-policy runs (PPO and its relatives): KL, ratio, entropy, length, repetition, rewards, value.

Every rule smooths over a few steps, compares with the run's own start or with a limit whose origin the table names, and
returns the steps at which it is broken. Columns are those of pipelines/training (docs/ppo.md).
"""

from __future__ import annotations

import numpy as np

from pipelines.diagnosis.finding import Action, Floats, Hit, Record
from pipelines.diagnosis.windows import Flags, mean_of_last, often, where

UPDATE_KL = 0.01
KL_WARNING = 10.0
SURPRISE = 0.02
CUT_OFF = "answers come from another distribution: its tail was cut off (top_k, top_p) or its temperature is lower"
FORCED = "answers come from another distribution: tokens were forced (min_new_tokens, a penalty) or its temperature is higher"
SMOOTH = 3
EVALUATIONS = 3
WRONG_WAY = "the reward points the wrong way (a wrong sign, or swapped labels): the judge fell from the start"
OVER = "over-optimisation: the policy has left what the reward model knows"
EOS_WINDOW, EOS_RISE = 5, 0.1
VALUE_WARMUP, VALUE_WINDOW = 20, 10


def update_kl(record: Record) -> list[Hit]:
    """D3. How far one step moves the policy (k3, nats a token): above 1.5 x target; three in a row are an alarm."""
    found = record.series("policy/approxkl")
    if found is None:
        return []
    steps, (values,) = found
    target = float(record.settings.get("target_update_kl") or UPDATE_KL)
    flags = values > 1.5 * target
    running = often(flags, 3, 3).tolist()
    what = "approximate KL of the update"
    return [
        _hit(steps, values, i, 1.5 * target, running[i], what, action="lower_rate" if running[i] else "") for i in where(flags)
    ]


def reference_kl(record: Record) -> list[Hit]:
    """D4. KL to the reference (nats a sequence): above 10 a warning; 2 x target for 3 of 5 an alarm, and 10 where beta is 0."""
    found = record.series("objective/kl", "beta")
    if found is None:
        return []
    steps, (kl, beta) = found
    target = float(record.settings.get("kl_target") or 0.0)
    hits = []
    many = often(kl > 2.0 * target, 3, 5) if target else np.zeros(len(kl), dtype=bool)
    for i in range(len(kl)):
        free = beta[i] == 0.0
        cause = "beta is 0: nothing holds the policy at the reference" if free else ""
        if target and kl[i] > 5.0 * target:
            hits.append(_hit(steps, kl, i, 5.0 * target, True, "KL to the reference", cause, "roll_back"))
        elif many[i]:
            hits.append(_hit(steps, kl, i, 2.0 * target, True, "KL to the reference", cause, "raise_beta"))
        elif kl[i] > KL_WARNING and free:
            hits.append(_hit(steps, kl, i, KL_WARNING, True, "KL to the reference", cause, "raise_beta"))
        elif not target and kl[i] > KL_WARNING:
            hits.append(_hit(steps, kl, i, KL_WARNING, False, "KL to the reference", cause))
    return hits


def other_distribution(record: Record) -> list[Hit]:
    """D5. What only answers from another distribution can show, in 3 of 5 steps: a negative KL (by 2 SE), or sampled tokens that
    are likelier or less likely than the entropy of the policy says (by 4 SE, and by 0.02 nats a token)."""
    hits = []
    found = record.series("objective/kl", "objective/kl_se")
    if found is not None:
        steps, (kl, se) = found
        flags = often(kl + 2.0 * se < -1e-4, 3, 5)
        what = "KL to the reference"
        hits += [_hit(steps, kl, i, -2.0 * float(se[i]), True, what, action="stop") for i in where(flags)]
    found = record.series("policy/surprise", "policy/surprise_se")
    if found is not None:
        steps, (gap, se) = found
        limits = np.maximum(4.0 * se, SURPRISE)
        for i in where(often(np.abs(gap) > limits, 3, 5)):
            cause = CUT_OFF if gap[i] < 0.0 else FORCED
            what = "surprise of the sampled tokens less the policy's entropy (nats a token)"
            hits.append(_hit(steps, gap, i, float(np.sign(gap[i]) * limits[i]), True, what, cause, "stop"))
    return sorted(hits, key=lambda hit: hit.step)


def ratio(record: Record) -> list[Hit]:
    """D6. The mean probability ratio of the update: outside 0.9 to 1.1 a warning, above 2 or below 0.1 an alarm (TRL)."""
    found = record.series("policy/ratio")
    if found is None:
        return []
    steps, (values,) = found
    extreme = record.series("policy/ratio_max")
    hits = []
    for i in where((values < 0.9) | (values > 1.1)):
        broken = bool(values[i] > 2.0 or values[i] < 0.1)
        limit = (2.0 if values[i] > 1.0 else 0.1) if broken else (1.1 if values[i] > 1.0 else 0.9)
        what = "mean ratio" + (
            f" (largest of a token {extreme[1][0][i]:.3g})" if extreme and len(extreme[0]) == len(steps) else ""
        )
        hits.append(_hit(steps, values, i, limit, broken, what, action="stop" if broken else ""))
    return hits


def first_ratio(record: Record) -> list[Hit]:
    """D7. Before the first update the ratio is 1; off by more than 1e-3 in float32 (1e-2 in bf16, or where that is unknown)."""
    found = record.series("policy/first_ratio")
    if found is None:
        return []
    steps, (values,) = found
    limit = 1e-3 if record.settings.get("precision") == "float32" else 1e-2
    off = np.abs(values - 1.0)
    return [_hit(steps, off, i, limit, True, "|first ratio - 1|", action="stop") for i in where(off > limit)]


def clip_fraction(record: Record) -> list[Hit]:
    """D8. More than 0.3 of the tokens outside the clip range for five steps."""
    found = record.series("policy/clipfrac")
    if found is None:
        return []
    steps, (values,) = found
    flags = often(values > 0.3, 5, 5)
    return [_hit(steps, values, i, 0.3, True, "clipped share of tokens", action="lower_rate") for i in where(flags)]


def entropy_collapse(record: Record) -> list[Hit]:
    """D9. Mean token entropy against the first step's: below 0.3 a warning, below 0.1 an alarm."""
    found = record.series("objective/entropy")
    if found is None or found[1][0][0] <= 0.0:
        return []
    steps, (values,) = found
    share = values / values[0]
    hits = []
    for i in where(share < 0.3):
        broken = bool(share[i] < 0.1)
        evidence = f"entropy against the first step's {values[0]:.3g} nats"
        hits.append(
            _hit(steps, share, i, 0.1 if broken else 0.3, broken, evidence, action="roll_back" if broken else "lower_rate")
        )
    return hits


def length_exploit(record: Record) -> list[Hit]:
    """D10. Answers more than 1.5 times as long as at the start while score and length correlate above 0.5 within a step."""
    found = record.series("tokens/response_length", "objective/length_correlation")
    if found is None:
        return []
    steps, (length, correlation) = found
    grown = mean_of_last(length, SMOOTH) / length[:SMOOTH].mean()
    along = mean_of_last(correlation, SMOOTH)
    flags = (grown > 1.5) & (along > 0.5)
    return [
        _hit(steps, grown, i, 1.5, True, f"length against the start; score and length correlate {along[i]:.2f}")
        for i in where(flags)
    ]


def truncation(record: Record) -> list[Hit]:
    """D11. More than 0.3 of the answers cut at the limit, over 5 steps, and more than at the start: by 0.1 and by 3 SE."""
    found = record.series("tokens/eos_rate")
    if found is None:
        return []
    steps, (ended,) = found
    cut = mean_of_last(1.0 - ended, EOS_WINDOW)
    start = float((1.0 - ended[:EOS_WINDOW]).mean())
    answers = EOS_WINDOW * int(record.settings.get("batch_size", 32)) * int(record.settings.get("samples_per_prompt", 1))
    noise = np.sqrt((cut * (1.0 - cut) + start * (1.0 - start)) / answers)
    flags = (cut > 0.3) & (cut - start > np.maximum(EOS_RISE, 3.0 * noise))
    free = record.settings.get("missing_eos_penalty") == 0.0
    cause = "an answer that was cut costs nothing (missing_eos_penalty is 0)" if free else ""
    return [_hit(steps, cut, i, 0.3, True, f"answers without EOS (at the start {start:.2f})", cause) for i in where(flags)]


def repetition(record: Record) -> list[Hit]:
    """D12. Share of an answer's token 3-grams that it has said before: above 0.5, or twice the start (and 0.2 more)."""
    found = record.series("tokens/repetition")
    if found is None:
        return []
    steps, (values,) = found
    recent, start = mean_of_last(values, SMOOTH), float(values[:SMOOTH].mean())
    limit = min(0.5, max(2.0 * start, start + 0.2)) if start < 0.3 else max(0.5, start + 0.2)
    return [
        _hit(steps, recent, i, limit, True, f"repeated 3-grams (at the start {start:.2f})", action="roll_back")
        for i in where(recent > limit)
    ]


def proxy_gold_gap(record: Record) -> list[Hit]:
    """D13. The held-out judge more than 2 SE below its best while the proxy stands above where it was then, 3 evaluations long.

    Within a run that judge is the column ``judge/held_out``; at its end the evaluation's win rates by judge and reward model.
    """
    hits = _gap_at_the_end(record)
    found = record.series("judge/held_out", "judge/held_out_se", "objective/scores")
    if found is None:
        return hits
    steps, (judge, se, proxy) = found
    smooth, reward = mean_of_last(judge, SMOOTH), mean_of_last(proxy, SMOOTH)
    error = mean_of_last(se, SMOOTH) / np.sqrt(SMOOTH)
    flags, bests = np.zeros(len(steps), dtype=bool), np.zeros(len(steps), dtype=int)
    for i in range(SMOOTH - 1, len(steps)):
        best = int(np.nanargmax(smooth[: i + 1]))
        bests[i] = best
        flags[i] = smooth[best] - smooth[i] > 2.0 * np.hypot(error[i], error[best]) and reward[i] > reward[best]
    for i in where(often(flags, EVALUATIONS, EVALUATIONS)):
        best = int(bests[i])
        agreement = float(np.corrcoef(judge[: i + 1], proxy[: i + 1])[0, 1])
        from_the_start = best < 2 * SMOOTH and agreement < 0.0
        cause = f"{WRONG_WAY}; r = {agreement:.2f}" if from_the_start else f"{OVER}, after step {steps[best]}"
        what = f"judge since its best at step {steps[best]}; proxy {reward[best]:.3g} -> {reward[i]:.3g}"
        limit = float(smooth[best] - 2.0 * np.hypot(error[i], error[best]))
        hits.append(_hit(steps, smooth, i, limit, True, what, cause, "finish"))
    return hits


def _gap_at_the_end(record: Record) -> list[Hit]:
    judged, proxy = record.figures.get("win_rate_ci"), record.figures.get("reward_win_rate_ci")
    if not judged or not proxy or judged[1] >= 0.5 or proxy[0] <= 0.5:
        return []
    judge, model = f"win rate at most {judged[1]:.3f}", f"at least {proxy[0]:.3f}"
    evidence = f"the judge prefers SFT's answers ({judge}), the reward model the policy's ({model})"
    return [Hit(record.last_step, float(judged[1]), 0.5, "alarm", evidence)]


def disagreement(record: Record) -> list[Hit]:
    """D14. Spread of the reward models over the spread of the rewards: more than twice the start."""
    found = record.series("reward/disagreement")
    if found is None:
        return []
    steps, (values,) = found
    recent, start = mean_of_last(values, SMOOTH), float(values[:SMOOTH].mean())
    flags = recent > 2.0 * start
    return [_hit(steps, recent, i, 2.0 * start, True, "disagreement of the ensemble") for i in where(flags)]


def saturation(record: Record) -> list[Hit]:
    """D15. Scores that do not differ (sd < 1e-6), or more than 0.9 of them at the highest: there is nothing to learn from."""
    found = record.series("objective/scores_sd", "objective/scores_at_max")
    if found is None:
        return []
    steps, (spread, top) = found
    hits = []
    for i in where((spread < 1e-6) | (top > 0.9)):
        flat = bool(spread[i] < 1e-6)
        values, limit = (spread, 1e-6) if flat else (top, 0.9)
        hits.append(
            _hit(steps, values, i, limit, False, "standard deviation of the scores" if flat else "share at the highest score")
        )
    return hits


def value_explosion(record: Record) -> list[Hit]:
    """D16. Explained variance below 0 for 10 steps after a warm-up of 20, or a squared value error above 5 return variances."""
    if record.settings.get("method", "ppo") not in ("ppo", "a2c"):  # the others have no critic
        return []
    hits = []
    found = record.series("val/explained_variance")
    if found is not None:
        steps, (values,) = found
        flags = np.zeros(len(values), dtype=bool)
        flags[VALUE_WARMUP:] = often(values[VALUE_WARMUP:] < 0.0, VALUE_WINDOW, VALUE_WINDOW)
        hits += [_hit(steps, values, i, 0.0, True, "explained variance", action="lower_rate") for i in where(flags)]
    found = record.series("loss/value", "val/return_variance")
    if found is not None:
        steps, (loss, variance) = found
        share = 2.0 * loss / np.maximum(variance, 1e-12)
        flags = _late(share > 5.0) & (variance > 1e-12)
        what = "squared value error over the returns' variance"
        hits += [_hit(steps, share, i, 5.0, True, what, action="lower_rate") for i in where(flags)]
    return sorted(hits, key=lambda hit: hit.step)


def _late(flags_S: Flags) -> Flags:
    """Three steps in a row, the warm-up left out."""
    late = np.zeros(len(flags_S), dtype=bool)
    late[VALUE_WARMUP:] = often(flags_S[VALUE_WARMUP:], 3, 3)
    return late


def _hit(
    steps: np.ndarray, values_S: Floats, i: int, limit: float, alarm: bool, what: str, cause: str = "", action: Action = ""
) -> Hit:
    step, value = int(steps[i]), float(values_S[i])
    evidence = f"{what} {value:.3g} at step {step}, limit {limit:.3g}"
    return Hit(step, value, limit, "alarm" if alarm else "warning", evidence, cause, action)
