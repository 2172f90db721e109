"""The figures of docs/, drawn from the raw JSON under benchmarks/results: equal results give equal bytes.

``python benchmarks/figures.py`` draws those whose results are there; a benchmark that saves its results does so as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
FOLDER = ROOT / "docs" / "figures"
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Draw every figure whose results are there."""
    for path, svg in drawn().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(svg, encoding="utf-8")


def drawn() -> dict[Path, str]:
    """Every figure's file and SVG."""
    found = {}
    for name, draw in FIGURES.items():
        results = RESULTS / f"{name}.json"
        if results.exists():
            figures = draw(json.loads(results.read_text(encoding="utf-8")))
            found |= {FOLDER / f"{figure}.svg": svg for figure, svg in figures.items()}
    return found


def over_optimisation(result: dict[str, Any]) -> dict[str, str]:
    """Proxy (dashed) and gold (solid) against sqrt(KL), gains over SFT in standard deviations, a colour a seed."""
    from matplotlib.axes import Axes

    from pipelines.evaluation.svg import SERIES, render

    seeds = sorted(result["seeds"].items(), key=lambda item: int(item[0]))
    found = {}
    for series in seeds[0][1]:

        def paint(axes: Axes, series: str = series) -> None:
            for colour, (seed, run) in zip(SERIES, seeds, strict=False):
                points = run[series]["points"]
                d = [point["distance"] for point in points]
                for score, style in (("gold", "o-"), ("reward", "--")):
                    gains = [(point[score] - points[0][score]) / run[series]["sd"][score] for point in points]
                    axes.plot(d, gains, style, color=colour, markersize=3.5, label=f"seed {seed}" if score == "gold" else None)
            axes.set(xlabel="square root of KL to SFT", ylabel="gain, SFT standard deviations")

        name = f"over_optimisation_{series.replace(' ', '_')}"
        found[name], _ = render(name, f"Gold (solid) and proxy (dashed): {series}", paint, legend=len(seeds))
    return found


def iterate(result: dict[str, Any]) -> dict[str, str]:
    """Gold against KL: the rounds of the loop (solid), and the snapshots of the single round (dashed), a colour a seed."""
    from matplotlib.axes import Axes

    from pipelines.evaluation.svg import SERIES, render

    seeds = sorted(result["seeds"].items(), key=lambda item: int(item[0]))

    def paint(axes: Axes) -> None:
        for colour, (seed, run) in zip(SERIES, seeds, strict=False):
            for points, style in ((run["rounds"], "o-"), (run["single"]["curve"], "--")):
                label = f"seed {seed}" if points is run["rounds"] else None
                kl, gold = ([point[name] for point in points] for name in ("kl", "gold"))
                axes.plot(kl, gold, style, color=colour, markersize=3.5, label=label)
        axes.set(xlabel="KL to SFT (nats a sequence)", ylabel="gold score")

    return {"iterate": render("iterate", "Rounds (solid) and a single round (dashed)", paint, legend=len(seeds))[0]}


FIGURES: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {"iterate": iterate, "over_optimisation": over_optimisation}


if __name__ == "__main__":
    main()
