"""Which action a run takes on its own: the mildest that has not been tried yet, three at the most, with time to work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from pipelines.diagnosis.finding import Action, Finding
from pipelines.diagnosis.table import detector_of

ORDER: tuple[Action, ...] = get_args(Action)
MOST = 3
"""Automatic actions a run."""
PAUSE = 5
"""Steps after an action in which none follows: what it does has to be seen first."""
DONE = {
    "skip": "left its batch out",
    "raise_beta": "raised beta",
    "lower_rate": "halved the learning rate",
    "roll_back": "rolled back to step {after}",
    "finish": "ended the run with step {after}",
}


def choose(findings: Sequence[Finding], step: int, taken: Sequence[Mapping[str, Any]]) -> Finding | None:
    """The finding to act on after ``step``, with its action; None where there is none, or no more may be taken.

    Only what is true at ``step`` counts. ``taken``: earlier actions as ``{"step", "detector", "action", "after"}``, where
    ``after`` is the step from which the run went on. A detector whose action was taken before asks for the next stronger one.
    """
    if len(taken) >= MOST or any(step - int(one["after"]) < PAUSE for one in taken):
        return None
    asked = [one for one in findings if one.action and one.last_step == step]
    if not asked:
        return None
    worst = max(asked, key=lambda one: (ORDER.index(one.action), one.detector))
    tried = {one["action"] for one in taken if one["detector"] == worst.detector}
    action = worst.action
    while action in tried and action != "stop":
        action = _stronger(action)
    return replace(worst, action=action)


def _stronger(action: Action) -> Action:
    """After adapting comes rolling back, after that stopping."""
    return "roll_back" if action in ("skip", "raise_beta", "lower_rate") else "stop"


def told(action: Mapping[str, Any]) -> str:
    """An action that was taken, in words: ``step 12: rolled back to step 10 (D9, entropy collapse)``."""
    what, detector = DONE[action["action"]].format(after=action["after"]), detector_of(action["detector"])
    return f"step {action['step']}: {what} ({detector.id}, {detector.signal})"
