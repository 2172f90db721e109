"""Plots as SVG text and PNG: drawn once, shown as files on white, and inside the page in its colours.

Byte-deterministic: a fixed hash salt, no date, matplotlib's own font for the layout, no global state.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1c2430", "#626d7c", "#e3e6ea", "#fffffe"
NEUTRAL = "#7b8794"
SERIES = ("#0f766e", "#c2570c", "#4f46e5", "#be185d", "#5c7a0a", "#0369a1", "#8a4b2a", "#7e22ce")
"""Told apart by people who see colours differently, and readable on both of the page's backgrounds."""

DPI = 150

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefloop",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Plot:
    """One plot: file name, section of the page, what it shows in a sentence, and it as SVG and PNG on white."""

    name: str
    section: str
    caption: str
    svg: str
    png: bytes


def render(name: str, title: str, paint: Callable[[Axes], None], legend: int = 0) -> tuple[str, bytes]:
    """One figure of the report's size as SVG and PNG: title, axes, and a legend of ``legend`` entries below them."""
    settings: Any = {**mpl.rcParamsDefault, **STYLE, "svg.hashsalt": f"prefloop-{name}"}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(4.1, 2.9 + 0.19 * ((legend + 2) // 3)), facecolor=PAPER, layout="constrained")
        FigureCanvasSVG(figure)
        figure.suptitle(title, x=0.015, horizontalalignment="left", fontsize=10.5, color=INK)
        axes = figure.add_subplot(facecolor="none")
        paint(axes)
        if legend:
            figure.legend(loc="outside lower left", ncols=min(legend, 3), handlelength=1.4, columnspacing=1.4)
        # the layout, which is most of the work, once for both files
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        vector, raster = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(raster, format="png", dpi=DPI, metadata={"Software": None})
    return vector.getvalue(), raster.getvalue()


def inline(plot: Plot) -> str:
    """The SVG for the page: colours become the page's, the font its font, ids its own; nothing that names a network."""
    svg = plot.svg[plot.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'id="([^"]+)"', rf'id="{plot.name}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{plot.name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font: \1 var(--sans)", svg)
    colours = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "card", NEUTRAL: "s-sft"}
    colours |= {colour: f"s-{i}" for i, colour in enumerate(SERIES)}
    for colour, variable in colours.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    return re.sub(r"\s*\n\s*", " ", svg).strip()
