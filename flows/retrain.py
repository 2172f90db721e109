"""The flow ``retrain``: is there new data? Then train, evaluate, challenge, promote or keep; else say so and end.

It works in a git worktree of its own that shares DVC's cache, so nothing changes under a person's hands.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.deployments import run_deployment
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run

from flows import environment
from flows.promote import decide
from flows.train import train
from tasks import registry, retraining
from tasks.ledger import Lost


@flow(name="retrain", retries=0, persist_result=False)
def retrain(root: str = ".", reason: str = "schedule") -> dict[str, Any]:
    """Retrain where something has changed. Returns ``{"outcome", "version", "champion", "why"}``; outcome is ``nothing to do``,
    or what became of the challenger: ``promoted``, ``refused``, ``waiting``.
    """
    begun, folder = time.monotonic(), Path(root).resolve()
    registry.use_store_of(folder)
    due = flow_run.scheduled_start_time if deployment.id else None
    result = {"outcome": "nothing to do", "version": "", "champion": "", "why": retraining.caught_up(folder, due)}
    if not result["why"]:
        retraining.started(folder)
        result = work(folder, reason)
    get_run_logger().info("%s (%s), %.1f s", result["outcome"], result["why"], time.monotonic() - begun)
    return result


def work(root: Path, reason: str) -> dict[str, Any]:
    """The beats of a retraining."""
    # 1. the newest data, in a worktree
    worktree = retraining.prepare(root)
    with environment.alone(worktree):
        office = retraining.in_worktree(root, worktree)
        policy = retraining.policy_of(office)

        # 2. is there anything to do?
        if retraining.idle(worktree, office, policy):
            return {"outcome": "nothing to do", "version": "", "champion": office.standing().champion, "why": "inputs unchanged"}

        # 3. train and evaluate: what did not change comes from the cache
        train((), False, str(worktree))

        # 4. the record, then the version
        retraining.record(worktree, office.params, reason)
        version, fresh = registry.register(office, policy)
        if not fresh and version.number == office.standing().champion:
            return {"outcome": "nothing to do", "version": version.number, "champion": version.number, "why": "the same model"}

        # 5. challenge, promote or keep
        try:
            result = {**decide(office, version, suspend=False), "why": reason}
        except Lost as error:
            return {"outcome": "refused", "version": version.number, "champion": office.standing().champion, "why": str(error)}
        if result["outcome"] == "waiting" and deployment.id:  # a run of its own waits for the person: this one frees its slot
            parameters = {"version": version.number, "root": str(worktree), "project": str(root)}
            run_deployment("promote/promote", parameters=parameters, timeout=0, as_subflow=False)
        return result
