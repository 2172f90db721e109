"""Detectors for what learns from pairs: DPO and its relatives, the reward model, and the labels themselves."""

from __future__ import annotations

import math

import numpy as np

from pipelines.diagnosis.finding import Hit, Record
from pipelines.diagnosis.windows import mean_of_last, often, where

SMOOTH = 5
NATS_A_TOKEN, SHARE = 0.5, 0.2
DEAD, NO_GRADIENT = 20, 1e-5
LEAST_PAIRS = 20


def displacement(record: Record) -> list[Hit]:
    """D17. The chosen answers themselves become unlikely while the margin grows: by 0.5 nats a token or 20 % of their
    log-probability under the reference, over 5 steps (Razin et al. 2024; Pal et al. 2024). ORPO has no reference."""
    found = record.series("rewards/chosen", "logps/chosen", "rewards/margins")
    beta = float(record.settings.get("beta") or 0.0)
    if found is None or not beta or record.settings.get("method") == "orpo":
        return []
    steps, (rewards, logprobs, margins) = found
    moved = mean_of_last(rewards / beta, SMOOTH)
    share = -moved / np.abs(mean_of_last(logprobs - rewards / beta, SMOOTH))
    tokens = float(record.figures.get("chosen_tokens") or math.inf)
    grown = mean_of_last(margins, SMOOTH) > margins[0]
    hits = []
    for i in where(grown & ((share > SHARE) | (-moved / tokens > NATS_A_TOKEN))):
        by_token = share[i] <= SHARE
        value, limit = (float(-moved[i] / tokens), NATS_A_TOKEN) if by_token else (float(share[i]), SHARE)
        unit = "nats a token" if by_token else "of their log-probability under the reference"
        hits.append(
            Hit(int(steps[i]), value, limit, "alarm", f"the chosen answers have lost {value:.3g} {unit}, the margin grows")
        )
    return hits


def dead_run(record: Record) -> list[Hit]:
    """D18. Loss ln 2 and no gradient for 20 steps: the two sides of every pair are the same.

    No gradient is one below 1e-5: equal sides in other rows of a batch leave 4e-7 of rounding in float32.
    """
    found = record.series("loss", "grad_norm")
    if found is None:
        return []
    steps, (loss, norm) = found
    flags = often((np.abs(loss - math.log(2.0)) < 1e-4) & (norm < NO_GRADIENT), DEAD, DEAD)
    evidence = "loss ln 2 and no gradient for 20 steps"
    return [Hit(int(steps[i]), float(norm[i]), NO_GRADIENT, "alarm", evidence, action="stop") for i in where(flags)]


def overfit_or_flipped(record: Record) -> list[Hit]:
    """D19. The labels against what is known of them, the model against held-out pairs, and training against held-out accuracy.

    A share is refused where a binomial test at 0.05 does not put it above a coin's. A gap to training is a warning: the model
    that is kept is the best on held-out pairs, and what it is worth is measured on others.
    """
    from scipy.special import bdtr, bdtrc  # every training stage imports this module and few come here

    figures = record.figures
    hits = []
    golden = figures.get("golden_accuracy") or {}
    known = (
        ("labels in the order of the known gold", figures.get("label_agreement"), figures.get("known_pairs"), True),
        ("labels as in the golden set", golden.get("accuracy"), golden.get("pairs"), True),
        ("held-out pairs in the labelled order", figures.get("pair_accuracy"), figures.get("test_pairs"), False),
    )
    for what, share, count, of_labels in known:
        if share is None or not count or count < LEAST_PAIRS:
            continue
        right = round(share * count)
        p_more, p_less = float(bdtrc(right - 1, int(count), 0.5)), float(bdtr(right, int(count), 0.5))
        if p_more > 0.05:
            swapped = p_less < 0.05
            cause = "chosen and rejected are swapped" if of_labels and swapped else "the labels are noise" if of_labels else ""
            evidence = f"{what}: {share:.3f} of {int(count)}, not surely more than a coin's (p = {p_more:.2g})"
            hits.append(Hit(record.last_step, float(share), 0.5, "alarm", evidence, cause))
    return hits + _overfit(record)


def _overfit(record: Record) -> list[Hit]:
    held, own = record.series("eval_accuracy"), record.series("accuracy")
    if held is None or own is None:
        return []
    hits = []
    pairs = float(record.figures.get("validation_pairs") or math.inf)
    for step, accuracy in zip(held[0].tolist(), held[1][0].tolist(), strict=True):
        before = own[1][0][own[0] <= step][-SMOOTH:]
        noise = math.sqrt(max(accuracy * (1.0 - accuracy), 0.0) / pairs)
        limit = max(0.15, 2.0 * noise)
        gap = float(before.mean()) - accuracy if len(before) == SMOOTH else 0.0
        if gap > limit:
            evidence = f"training pairs {before.mean():.3f}, validation pairs {accuracy:.3f} in the labelled order at step {step}"
            hits.append(Hit(int(step), gap, limit, "warning", evidence, "over-fitting: training pairs are learnt by heart"))
    return hits


def calibration(record: Record) -> list[Hit]:
    """D20. Expected calibration error on held-out pairs above 0.1, and above what chance alone shows on so few pairs."""
    error, noise = record.figures.get("calibration_error"), record.figures.get("calibration_noise")
    if error is None:
        return []
    limit = max(0.1, float(noise or 0.0))
    if error <= limit:
        return []
    evidence = (
        f"expected calibration error {error:.3f} on {record.figures.get('test_pairs', '?')} held-out pairs, limit {limit:.3f}"
    )
    return [Hit(record.last_step, float(error), limit, "warning", evidence)]
