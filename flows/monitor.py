"""The flow ``monitor``: is served traffic still what the champion was evaluated on? Findings become events; drift retrains.

``prefloop.finding``: a warning or an alarm. ``prefloop.drift``: alarms in a row (prefect.yaml starts ``retrain`` on it).
``prefloop.rollback``: the served replies were proven worse than those of the champion before, which serves again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.logging import get_run_logger

from tasks import monitoring, registry

EVENTS = {"drift": "prefloop.drift", "rolled back": "prefloop.rollback"}


@flow(name="monitor", retries=0, persist_result=False)
def monitor(root: str = ".", log: str = "") -> dict[str, Any]:
    """Judge one window; returns what tasks/monitoring.py says of it."""
    office = registry.opened(Path(root).resolve())
    path = Path(log or office.params.monitor.log)
    result = monitoring.observe(office, path if path.is_absolute() else office.root / path)
    resource = {"prefect.resource.id": f"prefloop.champion.{office.name}", "prefloop.version": result["version"]}
    if result["level"] != "none":
        loud = [one for one in result["findings"] if one["level"] != "none"]
        payload = {"level": result["level"], "findings": loud, "alarms": result["alarms"], "decay": result["decay"]}
        emit_event("prefloop.finding", resource, payload=payload)
        if result["action"] in EVENTS:
            emit_event(EVENTS[result["action"]], resource, payload=payload)
    get_run_logger().info(told(result))
    return result


def told(result: dict[str, Any]) -> str:
    """A window in words."""
    if "until" not in result:
        return f"version {result['version']}: {result['rows']} new replies, not a whole window yet"
    lines = [f"version {result['version']}: {result['rows']} replies up to {result['until']}: {result['level']}"]
    lines += [
        f"  {one['signal']}: {one['test']} {one['value']:.3f}, limit {one['limit']:.3f}: {one['level']}"
        for one in result["findings"]
        if one["level"] != "none"
    ]
    if result["decay"]:
        low, high = result["decay"]["interval"]
        lines.append(f"  win rate over the version before: {result['decay']['win_rate']:.3f} ({low:.3f} to {high:.3f})")
    if result["alarms"] > 1:
        lines.append(f"  {result['alarms']} alarms in a row")
    return "\n".join([*lines, *([f"  {result['action']}"] if result["action"] else [])])
