"""The flow ``promote``: register or name a version, compare, judge, ask a person where params.yaml says so, promote or keep.

Started by a deployment it suspends while it waits for the answer (no process, no slot is held); the reviewer answers in
Prefect's page or with ``prefloop approve``. Started by hand it leaves the question in the ledger and ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

from tasks import promotion, registry
from tasks.ledger import Entry
from tasks.registry import Office


class Approval(RunInput):
    """What Prefect's page asks the reviewer."""

    approve: bool
    reason: str
    who: str = ""


@flow(name="promote", retries=0, persist_result=False)
def promote(version: str = "challenger", policy: str = "", root: str = ".", project: str = "") -> dict[str, Any]:
    """Promote a version (or register ``policy`` first). Returns ``{"outcome", "version", "champion", "decision"}``.

    ``project``: whose store and ledger count, where ``root`` is a worktree of it.
    """
    if project:
        registry.use_store_of(Path(project))
    office = registry.opened(Path(root).resolve())
    asked = resumed(office, str(flow_run.id or ""))
    if asked is not None:
        return told(office, asked.version, ask(office, asked), asked)
    chosen = registry.register(office, policy)[0] if policy else office.registry.version(version)
    return decide(office, chosen, suspend=True)


def resumed(office: Office, run: str) -> Entry | None:
    """The decision that this flow run asked about before it was suspended.

    Its evidence is what the reviewer saw: ``challenger`` may name another version by now, and the folder hold another run.
    """
    asked = [one for one in office.ledger.entries(office.name) if one.kind == "question" and one.body["flow_run"] == run]
    return decision_of(office, asked[-1]) if run and asked else None


def decide(office: Office, chosen: registry.Version, suspend: bool) -> dict[str, Any]:
    """Compare, judge, ask, promote or keep; show the decision as an artifact of the flow run."""
    outcome, entry = promotion.promote(office, chosen)
    decision = decision_of(office, entry)
    if decision is not None:
        show(office, decision)
    if outcome == "waiting" and suspend and deployment.id:
        outcome = ask(office, entry)
    return told(office, chosen.number, outcome, decision)


def told(office: Office, version: str, outcome: promotion.Outcome, decision: Entry | None) -> dict[str, Any]:
    """What the flow returns."""
    get_run_logger().info("models:/%s/%s: %s", office.name, version, outcome)
    return {
        "outcome": outcome,
        "version": version,
        "champion": office.standing().champion,
        "decision": decision.number if decision else 0,
    }


def ask(office: Office, decision: Entry) -> promotion.Outcome:
    """Suspend until the reviewer has answered; the flow then starts again from its beginning and comes by here."""
    promotion.question(office, decision, str(flow_run.id))
    seconds = int(office.params.promotion.approval_hours * 3600)
    said = suspend_flow_run(wait_for_input=Approval, timeout=max(1, seconds), key=f"decision-{decision.number}")
    version, who = office.registry.version(decision.version), said.who or "answered in Prefect's page"
    given, _ = promotion.answer(office, version, said.approve, said.reason, who, decision)
    return "promoted" if given.body["approved"] else "refused"


def resume(office: Office, answer: Entry) -> bool:
    """Wake the flow run that waits for an answer which the ledger has by now; False where none waits, or it cannot be told."""
    import httpx
    from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
    from prefect.flow_runs import resume_flow_run

    about = answer.body["decision"]
    asked = [one for one in office.ledger.entries(office.name) if one.kind == "question" and one.body["decision"] == about]
    if not asked:
        return False
    given = {"approve": answer.body["approved"], "reason": answer.body["reason"], "who": answer.body["who"]}
    try:
        resume_flow_run(asked[-1].body["flow_run"], run_input=given)
    except (FlowPauseTimeout, NotPausedError, ObjectNotFound, httpx.HTTPError):
        return False
    return True


def decision_of(office: Office, entry: Entry) -> Entry | None:
    """The decision that an entry is, or stands on."""
    number = entry.number if entry.kind == "decision" else entry.body.get("decision", 0)
    return next((one for one in office.ledger.entries(office.name) if one.number == number), None)


def show(office: Office, decision: Entry) -> None:
    """The gates as a table in Prefect."""
    from prefect.artifacts import create_markdown_artifact

    rows = "\n".join(
        f"| {gate['name']} | {'not measured' if gate['value'] is None else gate['value']} | {gate['bound']} | "
        f"{'pass' if gate['passed'] else '**FAIL**'} |"
        for gate in decision.body["gates"]
    )
    verdict = "passed" if decision.body["passed"] else "refused"
    create_markdown_artifact(
        f"**models:/{office.name}/{decision.version}: {verdict}** (ledger entry {decision.number})\n\n"
        f"| gate | value | bound | |\n|---|---:|---|---|\n{rows}\n",
        key="promotion",
        description=f"models:/{office.name}/{decision.version} against {decision.body['champion'] or 'the SFT model'}",
    )
