"""The gates between a challenger and the name ``champion``: each answers with value, bound and pass or fail. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Any

from pipelines.config_promotion import Promotion

ENGLISH = "beats SFT"


@dataclass(frozen=True)
class Gate:
    """One answer. ``value`` None = not measured, which never passes."""

    name: str
    value: float | str | None
    bound: str
    passed: bool


@dataclass(frozen=True)
class Evidence:
    """What the gates look at.

    ``compared``: the head-to-head (pipelines/challenge.py); ``against``: with whom. ``metrics`` and ``reward``: the challenger's
    evaluation and its reward model's. ``doctor``: findings on its training that block; ``lineage``: why it could not be made
    again; ``manifest``: files that are not as registered; ``unpushed``: what only this machine has. Empty lists are good news.
    """

    compared: dict[str, Any]
    against: str
    policy: str
    metrics: dict[str, Any]
    reward: dict[str, Any]
    doctor: list[str]
    lineage: list[str]
    manifest: list[str]
    unpushed: list[str]


def judged(settings: Promotion, seen: Evidence) -> list[Gate]:
    """Every gate that the settings do not leave out, in a fixed order."""
    low = seen.compared["interval"][0]
    gates = [
        _above(f"win rate against {seen.against}: lower end", low, settings.min_win_rate),
        _at_most("KL to the SFT model (nats a sequence)", seen.metrics.get("kl"), settings.max_kl),
        _at_least("reward model: held-out pairs in order", seen.reward.get("pair_accuracy"), settings.min_pair_accuracy),
        _at_most("reward model: log loss on held-out pairs", seen.reward.get("log_loss"), settings.max_log_loss),
        _calibration(settings, seen),
        *(_regression(key, allowed, seen.compared, seen.against) for key, allowed in settings.regressions.items()),
        *_group_regressions(settings, seen),
        _groups(settings, seen),
        *(_findings(seen) if settings.checks else []),
        _nothing("doctor", seen.doctor, "no finding that blocks") if settings.checks else None,
        _nothing("lineage", seen.lineage, "committed, tagged"),
        _nothing("pushed", seen.unpushed, "on the remotes") if settings.pushed else None,
        _nothing("manifest", seen.manifest, "every sha256 as registered"),
    ]
    return [gate for gate in gates if gate is not None]


def _calibration(settings: Promotion, seen: Evidence) -> Gate | None:
    bound, noise = settings.max_calibration_error, seen.reward.get("calibration_noise") or 0.0
    error = seen.reward.get("calibration_error")
    return _at_most("reward model: calibration error on held-out pairs", error, None if bound is None else max(bound, noise))


def _regression(key: str, allowed: float, compared: dict[str, Any], against: str) -> Gate:
    """A metric of both on the same prompts; ``-metric``: less is better."""
    name = key.removeprefix("-")
    ours, theirs = (compared[who].get(name) for who in ("challenger", "opponent"))
    change = None
    if ours is not None and theirs is not None:
        change = round(ours - theirs if not key.startswith("-") else theirs - ours, 6)
    return Gate(f"{name} against {against}", change, f"at least {-allowed:g}", change is not None and change >= -allowed)


def _group_regressions(settings: Promotion, seen: Evidence) -> list[Gate]:
    """Of every metric the group of prompts in which it has become worst; one that could not be measured is the worst."""
    groups = _judged_groups(settings, seen)
    gates = []
    for key, allowed in settings.group_regressions.items():
        found = {name: _regression(key, allowed, group, seen.against) for name, group in groups.items()}
        if found:
            worst = min(found, key=lambda name: -inf if (value := found[name].value) is None else float(value))
            gates.append(replace(found[worst], name=f"{found[worst].name} in group {worst} (worst of {len(groups)})"))
    return gates


def _judged_groups(settings: Promotion, seen: Evidence) -> dict[str, dict[str, Any]]:
    """The groups with prompts enough to be judged."""
    return {name: found for name, found in seen.compared["groups"].items() if found["prompts"] >= settings.min_group_prompts}


def _groups(settings: Promotion, seen: Evidence) -> Gate | None:
    """The group of prompts that loses most surely."""
    groups = _judged_groups(settings, seen)
    if settings.max_group_loss is None or not groups:
        return None
    worst = min(groups, key=lambda name: groups[name]["interval"][1])
    upper, bound = groups[worst]["interval"][1], 0.5 - settings.max_group_loss
    return Gate(f"win rate in group {worst}: upper end (worst of {len(groups)})", upper, f"at least {bound:g}", upper >= bound)


def _findings(seen: Evidence) -> list[Gate]:
    """The checks of the report page on the policy itself, but for the win rate over SFT, which has a gate of its own."""
    from pipelines.evaluation import summary

    if not {"win_rate_ci", "perplexity_ratio", "distinct_2_ratio"} <= seen.metrics.keys():
        return [Gate("checks of the report", None, "evaluated against the SFT model", False)]
    checks = summary.checks({"sft": {}, "reward": {}, "policies": {seen.policy: seen.metrics}})
    return [Gate(check.what, check.value, check.limit, check.passed) for check in checks if not check.what.startswith(ENGLISH)]


def _above(name: str, value: float | None, bound: float | None) -> Gate | None:
    return None if bound is None else Gate(name, value, f"above {bound:g}", value is not None and value > bound)


def _at_least(name: str, value: float | None, bound: float | None) -> Gate | None:
    return None if bound is None else Gate(name, value, f"at least {bound:g}", value is not None and value >= bound)


def _at_most(name: str, value: float | None, bound: float | None) -> Gate | None:
    return None if bound is None else Gate(name, value, f"at most {bound:g}", value is not None and value <= bound)


def _nothing(name: str, wrong: list[str], bound: str) -> Gate:
    return Gate(name, "; ".join(wrong[:3]) or "yes", bound, not wrong)
