"""One window of served traffic: judged once, remembered, and what follows from it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigurationError, DataError, EnvironmentFault
from tasks import locks, promotion, registry, repository, retraining
from tasks.ledger import Lost
from tasks.registry import Office

WINDOWS = Path(".runs/monitor/windows.jsonl")
SCORERS = {"sft": "artifacts/sft", "reward": "artifacts/reward"}


def observe(office: Office, log: Path) -> dict[str, Any]:
    """Judge the newest whole window of the champion's replies; a window that is not whole yet is level ``none`` with its rows.

    Adds to the child's findings (pipelines/observe.py): ``version``, ``alarms`` (in a row, this one included), ``action``:
    "" or ``drift`` or ``rolled back``.
    """
    champion = office.standing().champion
    if not champion:
        raise ConfigurationError(f"{office.name} has no champion to monitor; `prefloop promote --policy NAME` makes one")
    before = [one for one in windows(office.root) if one["version"] == champion]
    version = office.registry.version(champion)
    with tempfile.TemporaryDirectory(prefix="prefloop-") as name:
        out = Path(name) / "found.json"
        arguments = ["--log", str(log), "--version", champion, "--out", str(out)]
        arguments += ["--model", str(registry.folder_of(office, version, Path(name) / "champion"))]
        arguments += ["--after", before[-1]["until"]] if before else []
        lock = registry.lineage_of(office, version)["lock"]
        there = [scorers(place, lock) for place in (office.root, office.root / retraining.WORKTREE)]
        most: list[str] = max(there, key=len)
        arguments += most
        if previous := office.standing().previous:
            folder = registry.folder_of(office, office.registry.version(previous), Path(name) / "previous")
            arguments += ["--previous", str(folder)]
        result = _child(office.root, arguments, out)
    result |= {"version": champion, "alarms": 0, "action": ""}
    if result["rows"] == office.params.monitor.window:
        result["alarms"] = _in_a_row(before) + 1 if result["level"] == "alarm" else 0
        result["action"] = _follow_up(office, result)
        _remember(office.root, result)
    return result


def windows(root: Path) -> list[dict[str, Any]]:
    """The windows that were judged, in order."""
    path = root / WINDOWS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _in_a_row(before: list[dict[str, Any]]) -> int:
    count = 0
    for one in reversed(before):
        if one["level"] != "alarm":
            break
        count += 1
    return count


def _follow_up(office: Office, result: dict[str, Any]) -> str:
    """A proven loss against the champion before rolls back; alarms in a row are drift, told once each time they are full."""
    decay = result["decay"]
    if decay and decay["interval"][1] < 0.5:
        rate, before = decay["win_rate"], office.standing().previous
        reason = f"served replies win {rate:.3f} against version {before}, interval {decay['interval']}"
        try:
            promotion.rollback(
                office, reason, key=f"decay:{office.name}:{result['version']}:{result['until']}", expected=result["version"]
            )
        except Lost as error:  # somebody was quicker
            return f"not rolled back: {error}"
        body = {"reason": reason, "decay": decay, "findings": [one for one in result["findings"] if one["level"] == "alarm"]}
        office.ledger.append(office.name, "incident", result["version"], body, f"incident:{office.name}:{result['until']}")
        return "rolled back"
    full = office.params.monitor.alarms_in_a_row
    return "drift" if result["alarms"] and result["alarms"] % full == 0 else ""


def scorers(root: Path, lock: locks.Lock) -> list[str]:
    """The SFT and the reward model of a folder, as options of the child, where they are those of a version's ``lock``."""
    path = root / "dvc.lock"
    present = locks.parse(path.read_text(encoding="utf-8")) if path.exists() else {}
    theirs = {place: md5 for stage in lock for place, md5 in locks.hashes(lock, stage).items()}
    ours = {place: md5 for stage in present for place, md5 in locks.hashes(present, stage).items()}
    found: list[str] = []
    for name, place in SCORERS.items():
        folder = root / place
        if place not in theirs or theirs[place] != ours.get(place) or not folder.is_dir():
            break  # the reward model stands on the SFT model
        found += [f"--{name}", str(folder / "model" if (folder / "model").is_dir() else folder)]
    return found


def _child(root: Path, arguments: list[str], out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipelines", "observe", *arguments]
    done = subprocess.run(command, cwd=root, env=repository.environment(root), capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        fault = {2: DataError, 3: ConfigurationError}.get(done.returncode, EnvironmentFault)
        raise fault(said[-1].removeprefix("error: "))
    return dict(json.loads(out.read_text(encoding="utf-8")))


def _remember(root: Path, result: dict[str, Any]) -> None:
    path = root / WINDOWS
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result, sort_keys=True) + "\n")
