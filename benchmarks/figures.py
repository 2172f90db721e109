"""The figures of docs/, drawn from the raw JSON under benchmarks/results: equal results give equal bytes.

``python benchmarks/figures.py`` draws those whose results are there; a benchmark that saves its results does so as well.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def policies(name: str, title: str) -> Callable[[dict[str, Any]], dict[str, str]]:
    """Win rate against KL, a colour an entry of the recipe, a point a seed with its 95 % interval."""

    def draw(result: dict[str, Any]) -> dict[str, str]:
        from pipelines.evaluation.svg import NEUTRAL, SERIES, render

        seeds = list(result["seeds"].values())
        compared = [entry for entry, run in seeds[0].items() if "win_rate" in run]

        def paint(axes: Axes) -> None:
            axes.axhline(0.5, color=NEUTRAL, linewidth=0.8)
            for place, entry in enumerate(compared):
                runs = [seed[entry] for seed in seeds]
                ends = [[abs(run["win_rate_ci"][end] - run["win_rate"]) for run in runs] for end in (0, 1)]
                kl, rates = ([run[key] for run in runs] for key in ("kl", "win_rate"))
                colour, marker = SERIES[place % len(SERIES)], "os^D"[place // len(SERIES)]
                axes.errorbar(kl, rates, yerr=ends, fmt=marker, color=colour, markersize=4.5, elinewidth=0.7, label=entry)
            axes.set(xlabel="KL to SFT (nats a sequence)", ylabel="win rate against SFT")

        return {name: render(name, title, paint, legend=len(compared))[0]}

    return draw


def soft_prompts(result: dict[str, Any]) -> dict[str, str]:
    """What length and beginning change, against the model's size: the mean over seeds, and their range."""
    from pipelines.evaluation.svg import NEUTRAL, SERIES, render

    cost = {(entry["model"], entry["prompt"], entry["seed"]): entry["nats"] for entry in result["entries"]}
    size = {entry["model"]: entry["parameters"] for entry in result["entries"] if "parameters" in entry}
    seeds = sorted({seed for _, _, seed in cost})
    others = {"1, vocabulary": "1 vector", "4, vocabulary": "4 vectors", "16, random": "random", "16, text": "text"}

    def paint(axes: Axes) -> None:
        axes.axhline(0.0, color=NEUTRAL, linewidth=0.8)
        for colour, (prompt, label) in zip(SERIES, others.items(), strict=False):
            gaps = [[cost[model, prompt, seed] - cost[model, "16, vocabulary", seed] for seed in seeds] for model in size]
            _means(axes, gaps, colour, label)
        axes.set_xticks(range(len(size)), [f"{parameters / 1e6:.1f}" for parameters in size.values()])
        axes.set(xlabel="million parameters", ylabel="nats a token")

    title = "Soft prompts, less 16 vectors from the vocabulary"
    return {"soft_prompts": render("soft_prompts", title, paint, legend=len(others))[0]}


def mixtures(result: dict[str, Any]) -> dict[str, str]:
    """What held-out answers cost along each knob of the mixture: the mean over seeds, and their range."""
    from pipelines.evaluation.svg import SERIES, render

    knobs = {
        "tasks": {"0": "not tuned", "1": "1 task", "3": "3 tasks", "6": "6 tasks"},
        "templates": {"1": "1 template a task", "3": "3 templates a task", "all": "6 tasks"},
        "temperature": {"1": "temperature 1", "2": "temperature 2", "8": "temperature 8"},
    }
    kinds = {"held_out_tasks": "held-out tasks", "held_out_templates": "held-out templates"}

    def paint(axes: Axes, knob: str) -> None:
        for colour, (kind, label) in zip(SERIES, kinds.items(), strict=False):
            names = knobs[knob].values()
            costs = [[entry[kind] for entry in result["entries"] if entry["mixture"] == name] for name in names]
            _means(axes, costs, colour, label)
        axes.set_xticks(range(len(knobs[knob])), list(knobs[knob]))
        axes.set(xlabel=knob, ylabel="nats a token")

    return {
        f"mixtures_{knob}": render(
            f"mixtures_{knob}", f"Held-out answers and the mixture's {knob}", partial(paint, knob=knob), legend=len(kinds)
        )[0]
        for knob in knobs
    }


def maxmin(result: dict[str, Any]) -> dict[str, str]:
    """Each group's win rate, and that of whichever is worst off: the mean over seeds, and their range, a colour a policy."""
    from pipelines.evaluation.svg import NEUTRAL, SERIES, render

    groups = list(result["groups"])

    def paint(axes: Axes) -> None:
        axes.axhline(0.5, color=NEUTRAL, linewidth=0.8)
        for colour, policy, style in zip(SERIES, ("single", "maxmin"), ("o", "D"), strict=False):
            rates = [run["policies"][policy]["win_rate"] for run in result["seeds"].values()]
            own = [[rate[group] for rate in rates] for group in groups]
            _means(axes, [*own, [min(rate.values()) for rate in rates]], colour, policy, style)
        axes.set_xticks(range(len(groups) + 1), [*groups, "worst off"])
        axes.set(ylabel="win rate against SFT, own judge")

    return {"maxmin": render("maxmin", "One reward model, and one a group", paint, legend=2)[0]}


def _means(axes: Axes, values: list[list[float]], colour: str, label: str, style: str = "o-") -> None:
    """The means of several seeds' values, one a place from 0 on, with their range."""
    means = [statistics.mean(own) for own in values]
    below = [mean - min(own) for mean, own in zip(means, values, strict=True)]
    above = [max(own) - mean for mean, own in zip(means, values, strict=True)]
    axes.errorbar(
        range(len(means)), means, yerr=[below, above], fmt=style, color=colour, markersize=3.5, elinewidth=0.8, label=label
    )


FIGURES: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {
    "betas": policies("betas", "Three betas of DPO"),
    "iterate": iterate,
    "maxmin": maxmin,
    "methods": policies("methods", "The methods on the default recipe"),
    "mixtures": mixtures,
    "over_optimisation": over_optimisation,
    "soft_prompts": soft_prompts,
}


if __name__ == "__main__":
    main()
