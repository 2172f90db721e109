"""Gold against KL over the rounds of a loop, as points and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from pipelines.evaluation.svg import NEUTRAL, SERIES, render


@dataclass(frozen=True)
class Point:
    """A round's mean KL to SFT (nats a sequence) and mean gold, each with its standard error."""

    number: int
    kl: float
    kl_se: float
    gold: float
    gold_se: float


def plotted(points: Sequence[Point], best: int) -> tuple[str, str, bytes]:
    """The points as CSV, and the plot as SVG and PNG: the rounds joined in their order, the best one ringed."""

    def paint(axes: Axes) -> None:
        axes.plot([point.kl for point in points], [point.gold for point in points], color=NEUTRAL, linewidth=0.9)
        for point in points:
            axes.errorbar(point.kl, point.gold, 1.96 * point.gold_se, 1.96 * point.kl_se, fmt="o", color=SERIES[0],
                          markersize=4, linewidth=0.9)  # fmt: skip
            axes.annotate(str(point.number), (point.kl, point.gold), xytext=(5, 5), textcoords="offset points")
            if point.number == best:
                axes.plot(point.kl, point.gold, "o", markersize=11, markerfacecolor="none", markeredgecolor=SERIES[1])
        axes.set(xlabel="KL to SFT (nats a sequence)", ylabel="gold score")
        axes.margins(x=0.15, y=0.15)

    rows = ["round,kl,kl_se,gold,gold_se", *(f"{p.number},{p.kl},{p.kl_se},{p.gold},{p.gold_se}" for p in points)]
    return "\n".join(rows) + "\n", *render("rounds", "Gold against KL over the rounds", paint)
