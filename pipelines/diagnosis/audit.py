"""A whole pipeline examined: the findings of every training, where a policy disappoints which stage is at fault, and why a
reward jumped. Pure: what it looks at is read by who calls it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from pipelines.diagnosis.attribution import Attribution, attribute, template_failures
from pipelines.diagnosis.finding import Finding, Record
from pipelines.diagnosis.spikes import Analysis, Rescore, analyse, first_spike
from pipelines.diagnosis.table import examine, method_of

SFT, REWARD = "sft", "reward"
ASKED_AFTER = ("D13", "D10", "D12", "D14", "D9")
"""Findings whose first step is asked the eight questions where no jump of the reward stands out."""


@dataclass(frozen=True)
class Known:
    """What is there of a pipeline; anything may be missing. Names are ``sft``, ``reward`` and those of the policies."""

    histories: Mapping[str, pd.DataFrame]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """As report/metrics.json: ``sft``, ``reward``, ``policies``."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    samples: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    journals: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    changed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    actions: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """As in actions.json, where the detectors have acted on a training."""


@dataclass(frozen=True)
class Audit:
    """By name: findings of every training, the attribution of every evaluated policy, the eight steps where they were asked, and
    what the detectors have done about a training."""

    findings: dict[str, list[Finding]]
    attributions: dict[str, Attribution]
    spikes: dict[str, Analysis]
    actions: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def blocking(self) -> list[str]:
        """``NAME: D10 length exploit``: what forbids a promotion."""
        return [f"{name}: {one.detector} {one.signal}" for name, some in self.findings.items() for one in some if one.blocks]

    def as_json(self) -> dict[str, Any]:
        """For machines. ``blocking`` empty = no blocking finding. A number that is not finite, which JSON has not, is None."""
        content = {
            "blocking": self.blocking,
            "findings": {name: [asdict(one) | {"blocks": one.blocks} for one in some] for name, some in self.findings.items()},
            "attributions": {name: asdict(one) for name, one in self.attributions.items()},
            "spikes": {name: asdict(one) for name, one in self.spikes.items()},
            "actions": dict(self.actions),
        }
        return dict(_for_json(content))


def audit(known: Known, rescore: Callable[[str], Rescore | None] = lambda name: None) -> Audit:
    """Examine everything that is known. ``rescore``: the reward model that a policy learnt from, by its name."""
    records = {name: _record(known, name) for name in known.histories}
    findings = {name: examine(record) for name, record in records.items()}
    policies = [name for name in records if name not in (SFT, REWARD)]
    metrics = _with_language(known)
    attributions = {
        name: attribute(name, records[name].method, metrics, findings[name])
        for name in policies
        if metrics.get(SFT) and "win_rate_ci" in known.metrics.get("policies", {}).get(name, {})
    }
    spikes = {}
    for name in policies:
        step = _asked_step(records[name], findings[name])
        if step is not None:
            samples = known.samples.get(name)
            spikes[name] = analyse(records[name], step, known.changed.get(name), samples, rescore(name))
    return Audit(findings, attributions, spikes, known.actions)


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _record(known: Known, name: str) -> Record:
    own = known.metrics.get(name) if name in (SFT, REWARD) else known.metrics.get("policies", {}).get(name)
    history = known.histories[name]
    return Record(method_of(history.columns), history, known.settings.get(name, {}), own or {}, known.journals.get(name, ()))


def _asked_step(record: Record, findings: Sequence[Finding]) -> int | None:
    if record.method != "on_policy":
        return None
    first = first_spike(record)
    by_detector = {finding.detector: finding.first_step for finding in findings}
    return first if first is not None else next((by_detector[id] for id in ASKED_AFTER if id in by_detector), None)


def _with_language(known: Known) -> dict[str, Any]:
    """The metrics, SFT's with its template failures and its training loss, which its evaluation does not hold."""
    sft = dict(known.metrics.get(SFT, {}))
    if SFT in known.samples:
        sft["template_failures"] = template_failures(known.samples[SFT]["text"].tolist())
    history = known.histories.get(SFT)
    for column in ("loss", "eval_loss"):
        if history is not None and column in history and history[column].notna().any():
            sft.setdefault(column, float(history[column].dropna().tail(5 if column == "loss" else 1).mean()))
    return {**known.metrics, SFT: sft, REWARD: dict(known.metrics.get(REWARD, {}))}
