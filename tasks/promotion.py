"""From a registered version to the champion: compare, judge, ask, and let the ledger decide; and back again."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pipelines.adapters.registry import Version
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault, PrefloopError
from tasks import gates, locks, registry, repository
from tasks.ledger import Entry, Lost
from tasks.registry import Office
from tasks.repository import git

Outcome = Literal["promoted", "champion", "refused", "waiting"]


def promote(office: Office, version: Version) -> tuple[Outcome, Entry]:
    """Compare a version with the champion, judge it, and promote it if every gate passes and nobody has to be asked.

    Returns what came of it and the ledger's entry that says so. Raises Lost where another promoter was quicker or the
    version was rolled back.
    """
    now = office.standing()
    if version.number == now.champion:
        return "champion", next(entry for entry in office.ledger.entries(office.name) if entry.number == now.fence)
    refuse_rolled_back(office, version)
    decision = decide(office, version, compare(office, version, now.champion), now.champion)
    if not decision.body["passed"]:
        return "refused", decision
    if not office.params.promotion.approval:
        return "promoted", enact(office, decision)
    given = approval_of(office, decision)
    if given is None:
        return "waiting", decision
    return ("promoted", enact(office, decision, given)) if given.body["approved"] else ("refused", given)


def question(office: Office, decision: Entry, run: str) -> Entry:
    """Remember which flow run waits for the answer to a decision."""
    key = f"question:{decision.number}:{run}"
    return office.ledger.append(office.name, "question", decision.version, {"decision": decision.number, "flow_run": run}, key)


def approval_of(office: Office, decision: Entry) -> Entry | None:
    """A reviewer's answer to a decision; None where nobody has answered."""
    entries = office.ledger.entries(office.name)
    return next((one for one in entries if one.kind == "approval" and one.body["decision"] == decision.number), None)


def refuse_rolled_back(office: Office, version: Version) -> None:
    """Raise Lost for a version that was rolled back: no schedule may bring it back."""
    if version.number in office.standing().rolled_back:
        raise Lost(f"version {version.number} of {office.name} was rolled back; what was rolled back is not promoted again")


def compare(office: Office, version: Version, champion: str) -> dict[str, Any]:
    """The head-to-head of a version with the champion ("" = with the SFT model) on the version's held-out prompts.

    The champion's answers are taken as registered where they were drawn and judged alike; else its model answers now.
    Needs the version's evaluation in this workspace; raises ConfigurationError where another run is there.
    """
    lineage = registry.lineage_of(office, version)
    policy = lineage["policy"]
    lock_file = office.root / "dvc.lock"
    lock = locks.parse(lock_file.read_text(encoding="utf-8")) if lock_file.exists() else {}
    stage = f"evaluate@{policy}"
    if stage not in lineage["lock"]:
        raise DataError(f"{version.uri}: it was registered without an evaluation (no stage {stage}), so it cannot be compared")
    if stage not in lock or locks.hashes(lock, stage) != locks.hashes(lineage["lock"], stage):
        raise ConfigurationError(
            f"{version.uri}: this folder holds another run; `git checkout {lineage['tag']} -- params.yaml dvc.lock` and "
            f"`prefloop run` bring its evaluation back"
        )
    with tempfile.TemporaryDirectory(prefix="prefloop-") as name:
        opponent = _opponent(office, champion, lineage, Path(name))
        out = Path(name) / "compared.json"
        command = [sys.executable, "-m", "pipelines", "challenge", "--policy", policy, *opponent, "--out", str(out)]
        done = subprocess.run(command, cwd=office.root, env=repository.environment(office.root), capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            fault = {2: DataError, 3: ConfigurationError}.get(done.returncode, EnvironmentFault)
            raise fault(f"comparison with {_named(champion)}: {said[-1].removeprefix('error: ')}")
        return dict(json.loads(out.read_text(encoding="utf-8")))


def decide(office: Office, version: Version, compared: dict[str, Any], champion: str) -> Entry:
    """Put every gate's answer into the ledger, passed or refused; the same evidence again is the same entry."""
    lineage = registry.lineage_of(office, version)
    seen = gates.Evidence(
        compared=compared,
        against=_named(champion),
        policy=lineage["policy"],
        metrics=lineage["metrics"],
        reward=lineage["reward"],
        doctor=lineage["doctor"],
        lineage=_lineage_faults(office, version, lineage),
        manifest=registry.verified(office, version),
        unpushed=_unpushed(office, lineage["tag"]) if office.params.promotion.pushed else [],
    )
    answers = gates.judged(office.params.promotion, seen)
    body = {
        "passed": all(gate.passed for gate in answers),
        "champion": champion,
        "gates": [asdict(gate) for gate in answers],
        "compared": {key: compared[key] for key in ("win_rate", "interval", "win", "lose", "tie", "comparisons")},
        "content": version.tags.get(registry.CONTENT, ""),
        "approval": office.params.promotion.approval,
    }
    fence = office.standing().fence  # after a rollback the same evidence is a new question
    key = f"decision:{office.name}:{version.number}:{fence}:{locks.digest(body)}"
    decision = office.ledger.append(office.name, "decision", version.number, body, key)
    registry.converge(office)
    return decision


def enact(office: Office, decision: Entry, approval: Entry | None = None) -> Entry:
    """Promote by a decision: a compare-and-set against the champion that it was made about; then MLflow's names follow."""
    body = {"decision": decision.number, "approval": approval.number if approval else 0, "content": decision.body["content"]}
    key = f"promote:{decision.number}"
    try:
        return office.ledger.promote(office.name, decision.version, decision.body["champion"], body, key)
    finally:
        registry.converge(office)


def answer(
    office: Office, version: Version, approved: bool, reason: str, who: str = "", decision: Entry | None = None
) -> tuple[Entry, Entry | None]:
    """A reviewer's answer to a decision (None = the newest one that passed); an approval promotes at once.

    Returns the answer's entry and the promotion's; the same answer again is the same entries. Raises ConfigurationError where
    nothing waits, or no longer.
    """
    if not reason.strip():
        raise ConfigurationError("--reason: say why; the ledger keeps it")
    decision = decision or _waiting(office, version)
    refuse_rolled_back(office, version)
    limit = datetime.fromisoformat(decision.time) + timedelta(hours=office.params.promotion.approval_hours)
    if approval_of(office, decision) is None and datetime.now(UTC) > limit:
        raise ConfigurationError(
            f"{version.uri}: the time to answer was over at {limit:%Y-%m-%d %H:%M} UTC (promotion.approval_hours); "
            f"`prefloop promote {version.number}` asks again"
        )
    body = {"approved": approved, "reason": reason, "who": who or reviewer(office.root), "decision": decision.number,
            "evidence": decision.hash}  # fmt: skip
    given = office.ledger.append(office.name, "approval", version.number, body, f"approval:{decision.number}")
    if given.body["approved"] != approved:
        raise Lost(
            f"{version.uri}: {given.body['who']} has answered already (ledger entry {given.number}): {given.body['reason']}"
        )
    return given, enact(office, decision, given) if approved else None


def rollback(office: Office, reason: str, key: str = "", expected: str = "") -> Entry:
    """Give the name back to the champion before; the present one is marked and never promoted again."""
    body = {"reason": reason, "who": reviewer(office.root)}
    fence = office.standing().fence
    try:
        return office.ledger.rollback(office.name, body, key or f"rollback:{office.name}:{fence}", expected)
    finally:
        registry.converge(office)


def reviewer(root: Path) -> str:
    """Who is at the keyboard: git's e-mail address, else the account."""
    try:
        return os.environ.get("GIT_AUTHOR_EMAIL") or git(root, "config", "user.email") or getpass.getuser()
    except (PrefloopError, KeyError, OSError):
        return getpass.getuser()


def _waiting(office: Office, version: Version) -> Entry:
    """The newest decision of a version that passed."""
    entries = office.ledger.entries(office.name)
    passed = [one for one in entries if one.kind == "decision" and one.version == version.number and one.body["passed"]]
    if not passed:
        raise ConfigurationError(f"{version.uri}: no decision waits for approval; `prefloop promote {version.number}` makes one")
    return passed[-1]


def _opponent(office: Office, champion: str, ours: dict[str, Any], folder: Path) -> list[str]:
    if not champion:
        return ["--samples", "artifacts/evaluations/sft/samples.parquet"]
    version = office.registry.version(champion)
    theirs = registry.lineage_of(office, version)
    if theirs["evaluation"] and theirs["evaluation"] == ours["evaluation"]:
        return ["--samples", str(office.registry.fetch(version, folder, "evaluation") / "samples.parquet")]
    return ["--model", str(registry.pull(office, version, folder / "champion"))]


def _lineage_faults(office: Office, version: Version, lineage: dict[str, Any]) -> list[str]:
    """Why git could not give back what made a version."""
    tag = lineage["tag"]
    try:
        lock = locks.parse(git(office.root, "show", f"{tag}:./dvc.lock"))
    except PrefloopError:
        return [f"git has no dvc.lock at {tag}"]
    if locks.digest(lock) != version.tags.get("prefloop.dvc_lock"):
        return [f"dvc.lock at {tag} is not the one that it was made with"]
    return []


def _unpushed(office: Office, tag: str) -> list[str]:
    remote = office.params.registry.git_remote
    if not remote:
        return ["registry.git_remote is not set"]
    missing = [] if git(office.root, "ls-remote", "--tags", remote, f"refs/tags/{tag}") else [f"{tag} is not on {remote}"]
    with repository.opened(office.root) as repo:
        return missing + ([] if repo.config["core"].get("remote") else ["DVC has no default remote"])


def _named(champion: str) -> str:
    return f"version {champion}" if champion else "the SFT model"
