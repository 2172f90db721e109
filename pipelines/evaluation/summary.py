"""The run in a few lines, from ``artifacts/report/metrics.json`` alone: verdict, checks, table. Imports nothing heavy.

``metrics`` is always the dictionary of that file:
``{"sft": {...}, "reward": {...}, "policies": {NAME: {"win_rate": ..., "win_rate_ci": [low, high], ...}}}``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]

MAX_PERPLEXITY_RATIO = 1.5
MIN_DISTINCT_RATIO = 0.8
MIN_EOS_RATE = 0.6
MIN_PAIR_ACCURACY = 0.7

COLUMNS = (
    "policy", "win rate", "95 % interval", "win / tie / lose", "gold", "KL to SFT", "reward", "length", "EOS", "perplexity"
)  # fmt: skip
PHRASES = {
    "better": "beats the SFT model",
    "unsure": "is not surely different from the SFT model",
    "worse": "is worse than the SFT model",
}


@dataclass(frozen=True)
class Check:
    """One thing that a good run fulfils: what, the measured value, the limit, whether it holds."""

    subject: str
    what: str
    value: str
    limit: str
    passed: bool


def load(path: Path) -> Metrics:
    """Read ``artifacts/report/metrics.json``."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def standing(policy: Metrics) -> str:
    """``better`` or ``worse`` than SFT when the whole 95 % interval says so, else ``unsure``."""
    low, high = policy["win_rate_ci"]
    return "better" if low > 0.5 else "worse" if high < 0.5 else "unsure"


def verdict(metrics: Metrics) -> str:
    """The run in one sentence, with what a win was paid for; of more than four policies only the best one's figures."""
    policies = metrics["policies"]
    if not policies:
        return "No policy was trained: only the SFT model was evaluated."
    groups: dict[str, list[str]] = {"better": [], "unsure": [], "worse": []}
    for name, policy in policies.items():
        groups[standing(policy)].append(name)
    claim = _claim(groups, len(policies))
    shown = list(policies) if len(policies) <= 4 else [max(policies, key=lambda name: policies[name]["win_rate"])]
    figures = [_figures(name, policies[name], first=index == 0) for index, name in enumerate(shown)]
    return f"{claim}: {_joined(figures)}{_caution(policies)}."


def checks(metrics: Metrics) -> list[Check]:
    """What this project promises of a good run, each with its measured value."""
    found = [
        _at_least("SFT", "ends its answers itself (EOS rate)", metrics["sft"].get("eos_rate"), MIN_EOS_RATE),
        _at_least("reward model", "orders held-out pairs as labelled", metrics["reward"].get("pair_accuracy"), MIN_PAIR_ACCURACY),
    ]
    for name, policy in metrics["policies"].items():
        low, english, varied = policy["win_rate_ci"][0], policy["perplexity_ratio"], policy["distinct_2_ratio"]
        rows = (
            ("beats SFT: lower end of the win rate's interval", percent(low), "above 50.0 %", low > 0.5),
            ("reads as English: perplexity against SFT's", f"{english:.2f} x", f"at most {MAX_PERPLEXITY_RATIO} x",
             english <= MAX_PERPLEXITY_RATIO),
            ("stays varied: distinct-2 against SFT's", f"{varied:.2f} x", f"at least {MIN_DISTINCT_RATIO} x",
             varied >= MIN_DISTINCT_RATIO),
        )  # fmt: skip
        found += [Check(name, *row) for row in rows]
    return [check for check in found if check is not None]


def rows(metrics: Metrics) -> list[dict[str, str]]:
    """The summary table: one row a policy, then the SFT model; column names are COLUMNS."""
    table = [_row(name, policy) for name, policy in metrics["policies"].items()]
    return [*table, _row("SFT (baseline)", metrics["sft"])]


def markdown(metrics: Metrics) -> str:
    """Verdict, table and reward model in Markdown, as Prefect shows it."""
    lines = [f"**{_escaped(verdict(metrics))}**", "", f"| {' | '.join(COLUMNS)} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += [f"| {' | '.join(_escaped(row[column]) for column in COLUMNS)} |" for row in rows(metrics)]
    return "\n".join([*lines, "", reward_line(metrics), ""])


def plain(metrics: Metrics) -> str:
    """Verdict and aligned table for a terminal, at most 120 columns with short names."""
    table = [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows(metrics)]
    widths = {column: max(len(row[column]) for row in table) for column in COLUMNS}
    lines = ["  ".join(_aligned(row, column, widths[column]) for column in COLUMNS).rstrip() for row in table]
    lines.insert(1, "  ".join("-" * widths[column] for column in COLUMNS))
    return "\n".join([verdict(metrics), "", *lines, "", reward_line(metrics)])


def reward_line(metrics: Metrics) -> str:
    """The reward model in one sentence."""
    reward = metrics["reward"]
    accuracy, ceiling, longer = (reward.get(key) for key in ("pair_accuracy", "pair_accuracy_ceiling", "longer_wins"))
    if accuracy is None:
        return "Reward model: no held-out pairs, so its accuracy is unknown."
    parts = [f"Reward model: {percent(accuracy)} of held-out pairs in the labelled order"]
    parts += [f"labels agree with the gold judge in {percent(ceiling)}"] if ceiling is not None else []
    parts += [f"always choosing the longer answer gives {percent(longer)}"] if longer is not None else []
    return "; ".join(parts) + "."


def percent(share: float, digits: int = 1) -> str:
    """0.7135 -> ``71.4 %``."""
    return f"{100 * share:.{digits}f} %"


def _row(name: str, model: Metrics) -> dict[str, str]:
    compared = "win_rate" in model
    cells = [
        name,
        percent(model["win_rate"]) if compared else "-",
        f"{percent(model['win_rate_ci'][0])} to {percent(model['win_rate_ci'][1])}" if compared else "-",
        " / ".join(f"{100 * model[key]:.0f}" for key in ("win", "tie", "lose")) if compared else "-",
        f"{model['gold_mean']:+.3f}",
        f"{model['kl']:.2f}",
        f"{model['reward_mean']:+.3f}",
        f"{model['length']:.1f}",
        percent(model["eos_rate"], 0),
        f"{model['perplexity']:.1f}" + (f" ({model['perplexity_ratio']:.2f} x)" if compared else ""),
    ]
    return dict(zip(COLUMNS, cells, strict=True))


def _claim(groups: dict[str, list[str]], total: int) -> str:
    better, unsure, worse = groups["better"], groups["unsure"], groups["worse"]
    every = {1: "", 2: "Both policies"}.get(total, f"All {total} policies")
    if total == 1:
        return next(f"{names[0]} {PHRASES[group]}" for group, names in groups.items() if names)
    if len(better) == total:
        return f"{every} beat the SFT model"
    if len(worse) == total:
        return f"{every} are worse than the SFT model"
    if not better:
        return f"None of the {total} policies surely beats the SFT model"
    named = _joined(better) if len(better) <= 3 else f"{len(better)} of {total} policies"
    verb = "beats" if len(better) == 1 else "beat"
    rest = [f"{_joined(unsure)} not surely"] if unsure else []
    rest += [f"{_joined(worse)} {'is' if len(worse) == 1 else 'are'} worse"] if worse else []
    return f"{named} {verb} the SFT model, {', '.join(rest) if len(unsure) + len(worse) <= 4 else 'the others not surely'}"


def _figures(name: str, policy: Metrics, first: bool) -> str:
    low, high = policy["win_rate_ci"]
    wins = "wins " if first else ""
    of = " of the comparisons" if first else ""
    interval = f"{'95 % interval ' if first else ''}{100 * low:.0f} to {100 * high:.0f}"
    return f"{name} {wins}{percent(policy['win_rate'], 0)}{of} ({interval})"


def _caution(policies: dict[str, Metrics]) -> str:
    """What the win rate does not say: language lost, or a reward model that prefers what the judge finds worse."""
    english = [name for name, policy in policies.items() if policy["perplexity_ratio"] > MAX_PERPLEXITY_RATIO]
    varied = [name for name, policy in policies.items() if policy["distinct_2_ratio"] < MIN_DISTINCT_RATIO]
    gamed = [name for name, policy in policies.items() if standing(policy) == "worse" and policy["reward_win_rate_ci"][0] > 0.5]
    parts = [f"{_counted(english)} reads less like English"] if english else []
    parts += [f"{_counted(varied)} repeats itself across prompts"] if varied else []
    parts += [f"{_counted(gamed)} pleases the reward model alone"] if gamed else []
    return f"; but {_joined(parts)}" if parts else ""


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {_joined(names) if len(names) <= 3 else f'{len(names)} policies'}"


def _at_least(subject: str, what: str, value: float | None, limit: float) -> Check | None:
    return None if value is None else Check(subject, what, percent(value), f"at least {percent(limit, 0)}", value >= limit)


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def _aligned(row: dict[str, str], column: str, width: int) -> str:
    return row[column].ljust(width) if column == COLUMNS[0] else row[column].rjust(width)
