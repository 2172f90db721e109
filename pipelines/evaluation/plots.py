"""What the report draws: every plot of the page, in its order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipelines.evaluation.comparison import sampled
from pipelines.evaluation.findings import SFT, Findings
from pipelines.evaluation.optimisation import fit
from pipelines.evaluation.reward_quality import reliability
from pipelines.evaluation.svg import MUTED, NEUTRAL, SERIES, Plot, render


@dataclass(frozen=True)
class Curve:
    """A column of the histories, as the page shows it."""

    column: str
    name: str
    title: str
    caption: str
    section: str = "training"


CURVES = (
    Curve("objective/scores", "reward", "Reward during training", "Reward model's score of the answers that PPO sampled."),
    Curve("judge/held_out", "held_out", "Held-out judge during training", "If it falls while the reward rises, that is gamed."),
    Curve("objective/kl", "kl", "KL to SFT during training (nats a sequence)", "How far the policy has moved while it learnt."),
    Curve("rewards/accuracies", "dpo_accuracy", "Pairs in the right order (dpo, orpo)", "Share with the right implicit reward."),
    Curve(
        "rewards/margins",
        "dpo_margin",
        "Reward margin (offline methods)",
        "Chosen minus rejected; it grows with confidence.",
    ),
    Curve("loss", "dpo_loss", "Loss (offline methods)", "0.693 = knows nothing yet (sigmoid loss)."),
    Curve("objective/entropy", "entropy", "Entropy (nats a token)", "A collapse here comes before repetition.", "more"),
    Curve("tokens/response_length", "length", "Answer length (tokens)", "A steady rise may be gaming of length.", "more"),
    Curve("tokens/eos_rate", "eos", "Answers that end by themselves", "Falls when the policy forgets to stop.", "more"),
    Curve("reward/disagreement", "disagreement", "How far the reward models disagree", "A share of the scores' spread.", "more"),
    Curve("policy/approxkl", "approxkl", "Update KL", "How far one step moves the policy.", "more"),
    Curve("policy/clipfrac", "clipfrac", "Clipped share of tokens", "Above 0.3 for long: the learning rate is too high.", "more"),
    Curve("val/explained_variance", "explained_variance", "Critic's explained variance", "1 = perfect, 0 = no help.", "more"),
    Curve("beta", "beta", "KL penalty (beta)", "Changes only under the adaptive controller.", "more"),
    Curve("grad_norm", "grad_norm", "Gradient norm", "Spikes come before instability.", "more"),
)


def draw(found: Findings) -> list[Plot]:
    """All plots of the report, in the order of the page; a plot without data is left out."""
    plots: list[Plot | None] = [_frontier(found), _over_optimisation(found), _gold_distribution(found), _proxy(found)]
    plots += [_training(found, SFT, "sft_loss", "SFT loss", "Nats a token, on the completion's tokens only.")]
    plots += [_training(found, "reward", "reward_loss", "Reward model's loss", "Bradley-Terry; 0.693 = knows nothing yet.")]
    plots += [_reward_accuracy(found), _reliability(found)]
    plots += [_curve(found, curve) for curve in CURVES]
    return [plot for plot in plots if plot is not None]


def colour_of(found: Findings, name: str) -> str:
    """Grey for SFT, else a colour by the policy's place."""
    return NEUTRAL if name == SFT else SERIES[found.policies.index(name) % len(SERIES)]


def _curve(found: Findings, curve: Curve) -> Plot | None:
    """A column of every policy that logs it: the steps thin, their running mean thick."""
    shown = [name for name in found.policies if _series(found.histories[name], curve.column) is not None]
    if not shown:
        return None

    def paint(axes: Axes) -> None:
        for name in shown:
            _line(axes, found.histories[name], curve.column, colour_of(found, name), name)
        axes.set(xlabel="step")

    return Plot(curve.name, curve.section, curve.caption, *render(curve.name, curve.title, paint, legend=len(shown)))


def _training(found: Findings, stage: str, name: str, title: str, caption: str) -> Plot | None:
    """Training and held-out loss of a stage."""
    history = found.histories[stage]
    lines = [("loss", "training", NEUTRAL), ("eval_loss", "held-out", SERIES[0])]
    lines = [line for line in lines if _series(history, line[0]) is not None]
    if not lines:
        return None

    def paint(axes: Axes) -> None:
        for column, label, colour in lines:
            _line(axes, history, column, colour, label)
        axes.set(xlabel="step")

    return Plot(name, "models", caption, *render(name, title, paint, legend=len(lines)))


def _reward_accuracy(found: Findings) -> Plot | None:
    """Held-out pair accuracy while the reward model learns, against what the labels allow."""
    history = found.histories["reward"]
    column = next((name for name in ("eval_accuracy", "accuracy") if _series(history, name) is not None), None)
    if column is None:
        return None
    ceiling = found.metrics["reward"].get("pair_accuracy_ceiling")

    def paint(axes: Axes) -> None:
        _line(axes, history, column, SERIES[0], "validation pairs" if column == "eval_accuracy" else "training pairs")
        if ceiling is not None:
            axes.axhline(ceiling, color=MUTED, linestyle="--", linewidth=1, label="label ceiling (test)")
        axes.axhline(0.5, color=MUTED, linewidth=0.8)
        axes.set(xlabel="step", ylim=(0.35, 1.02))

    legend = 1 + (ceiling is not None)
    caption = "0.5 is a coin; the dashed line is what a perfect model would reach."
    drawn = render("reward_accuracy", "Reward model: pairs in the right order", paint, legend=legend)
    return Plot("reward_accuracy", "models", caption, *drawn)


def _reliability(found: Findings) -> Plot | None:
    """How often the reward model is right, by how sure it is (Guo et al. 2017, figure 1)."""
    bins = reliability(found.scored_pairs) if len(found.scored_pairs) else found.scored_pairs
    if bins.empty:
        return None

    def paint(axes: Axes) -> None:
        axes.plot([0.5, 1.0], [0.5, 1.0], color=MUTED, linestyle="--", linewidth=1, label="as sure as right")
        axes.plot(bins["confidence"], bins["accuracy"], color=SERIES[0], label="reward model")
        axes.scatter(bins["confidence"], bins["accuracy"], s=8 + 90 * bins["pairs"] / bins["pairs"].sum(), color=SERIES[0])
        axes.set(xlabel="confidence", ylabel="share right", xlim=(0.48, 1.02), ylim=(0.0, 1.05))

    caption = "Below the dashed line it is surer than it is right. A larger dot stands for more pairs."
    drawn = render("reliability", "Is the reward model as sure as it is right?", paint, legend=2)
    return Plot("reliability", "models", caption, *drawn)


def _frontier(found: Findings) -> Plot:
    """Gold mean against KL, a point a model, both with 95 % error bars (Rafailov et al. 2023, figure 2)."""

    def paint(axes: Axes) -> None:
        for name, row in [(SFT, found.metrics["sft"]), *found.metrics["policies"].items()]:
            colour = colour_of(found, name)
            x, y = 1.96 * (row["kl_se"] or 0.0), 1.96 * (row["gold_se"] or 0.0)
            axes.errorbar(row["kl"], row["gold_mean"], y, x, fmt="o", color=colour, markersize=5, linewidth=1.1, label=name)
        axes.set(xlabel="KL to SFT (nats a sequence)", ylabel="gold score")
        axes.margins(x=0.12, y=0.15)

    caption = "Up is better, right is further from SFT. Bars are 95 % intervals."
    drawn = render("frontier", "What the drift buys: gold score against KL", paint, legend=1 + len(found.policies))
    return Plot("frontier", "frontier", caption, *drawn)


def _over_optimisation(found: Findings) -> Plot:
    """What gold (solid) and proxy (dashed) gain over SFT by sqrt(KL), in standard deviations of SFT's answers.

    Best-of-n is grey. Where there are points enough, gold's line is Gao et al.'s form fitted to them; rings are highest points.
    """
    sft = sampled(found.samples[SFT])
    spread = {score: float(sft[score].std()) or 1.0 for score in ("gold", "reward")}

    def paint(axes: Axes) -> None:
        for name, points in found.curves.items():
            colour, d = colour_of(found, name), points["distance"].to_numpy()
            gains = {score: (points[score] - points[score].iloc[0]).to_numpy() / spread[score] for score in spread}
            axes.plot(d, gains["reward"], "--", color=colour, linewidth=1.0, alpha=0.8)
            fitted = fit("best_of" if name == SFT else "policy", d, gains["gold"])
            label = "best of n" if name == SFT else name
            if fitted is None:
                axes.plot(d, gains["gold"], "o-", color=colour, markersize=3.5, label=label)
            else:
                fine = np.linspace(d.max() / 100, d.max(), 100)
                axes.plot(fine, fitted.gain(fine), color=colour, label=label)
                axes.errorbar(d, gains["gold"], 1.96 * points["gold_se"].fillna(0.0) / spread["gold"], fmt="o", color=colour,
                              markersize=3, linewidth=0.8)  # fmt: skip
            best = int(np.argmax(gains["gold"]))
            axes.plot(d[best], gains["gold"][best], "o", markersize=9, markerfacecolor="none", markeredgecolor=colour)
        axes.set(xlabel="square root of KL to SFT", ylabel="gain, SFT standard deviations")

    caption = "Solid: by the judge, its peak ringed. Dashed: by the reward model. Where only that rises, it is being gamed."
    drawn = render("over_optimisation", "What the judge sees of the reward model's gains", paint, legend=len(found.curves))
    return Plot("over_optimisation", "frontier", caption, *drawn)


def _gold_distribution(found: Findings) -> Plot:
    """Share of a model's answers with a gold score of at least x."""

    def paint(axes: Axes) -> None:
        for name, samples in found.samples.items():
            scores = np.sort(sampled(samples)["gold"].to_numpy())
            axes.step(scores, 1.0 - np.arange(len(scores)) / len(scores), where="pre", color=colour_of(found, name), label=name)
        axes.set(xlabel="gold score", ylabel="share", ylim=(0, 1.03))

    caption = "A line further right is better everywhere; a step is a score that many answers share."
    drawn = render("gold_distribution", "Answers with at least this gold score", paint, legend=len(found.samples))
    return Plot("gold_distribution", "frontier", caption, *drawn)


def _proxy(found: Findings) -> Plot:
    """Mean gold score by the reward model's score, in groups of equal size: flat = the reward model is gamed or blind."""

    def paint(axes: Axes) -> None:
        for name, samples in found.samples.items():
            drawn = sampled(samples).sort_values(["reward", "prompt_id", "answer"])
            groups = [group for group in np.array_split(np.arange(len(drawn)), min(6, len(drawn))) if len(group)]
            x, y = ([drawn[column].to_numpy()[group].mean() for group in groups] for column in ("reward", "gold"))
            axes.plot(x, y, "o-", color=colour_of(found, name), markersize=3.5, label=name)
        axes.set(xlabel="reward model's score", ylabel="gold score")

    caption = "Means of six groups of answers. A rising line: the reward model's order is the judge's order."
    drawn = render("proxy", "Does the reward model see what the judge sees?", paint, legend=len(found.samples))
    return Plot("proxy", "frontier", caption, *drawn)


def _series(history: pd.DataFrame, column: str) -> pd.DataFrame | None:
    """Step and value where the column has one."""
    if column not in history:
        return None
    rows = history.loc[history[column].notna(), ["step", column]]
    return rows if len(rows) else None


def _line(axes: Axes, history: pd.DataFrame, column: str, colour: str, label: str) -> None:
    rows = _series(history, column)
    assert rows is not None
    steps, values = rows["step"].to_numpy(), rows[column].to_numpy(dtype=np.float64)
    if len(values) < 12:
        axes.plot(steps, values, "o-", color=colour, markersize=3, label=label)
        return
    smooth = pd.Series(values).rolling(max(3, len(values) // 10), center=True, min_periods=1).mean().to_numpy()
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
    axes.plot(steps, smooth, color=colour, label=label)
