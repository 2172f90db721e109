"""The detectors act on a run that learns, where its recipe says ``diagnosis.act``; else nothing here touches it.

Everything is decided from the history, which all workers share, so all of them act alike, and a run that was killed decides
the same again. Actions are counted in the history (``diagnosis/actions``) and told in the journal, hence in MLflow and the log.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from pipelines.diagnosis import Finding, Record, examine
from pipelines.diagnosis.actions import MOST, choose
from pipelines.diagnosis.anyrun import gradient_limit
from pipelines.diagnosis.live import recent
from pipelines.errors import PrefloopError
from pipelines.training import checkpoints
from pipelines.training.distributed import barrier
from pipelines.training.results import drop_snapshots
from pipelines.training.rollout import Spike
from pipelines.training.run import Run, begin, folder, save

LOWER, RAISE, LEAST_BETA = 0.5, 2.0, 0.05


def record_of(run: Run) -> Record:
    """The run so far, as the detectors take it."""
    return Record("on_policy", pd.DataFrame(recent(run.progress.history)), run.job.params.model_dump())


def watched(run: Run, step: int) -> Run:
    """Act on what the detectors find after ``step``, where the recipe says so; the run to go on with."""
    if not run.job.params.diagnosis.act:
        return run
    chosen = choose(examine(record_of(run)), step, run.progress.actions)
    return run if chosen is None else acted(run, step, chosen)


def limit_of(run: Run) -> float:
    """The gradient norm above which the next batch is left out; infinite where the run only reports, or may act no more."""
    acting = run.job.params.diagnosis.act and len(run.progress.actions) < MOST
    return gradient_limit(record_of(run)) if acting and run.progress.history else math.inf


def skipped(run: Run, step: int, fault: Spike) -> Run:
    """The batch of ``step`` is left out because of its gradient: the mildest action."""
    _note(run, step, "D2", "skip", f"{fault}: its batch is left out")
    return run


def acted(run: Run, step: int, finding: Finding) -> Run:
    """Take the finding's action. Raises PrefloopError where that is to stop."""
    why = f"{finding.detector}, {finding.signal}: {finding.evidence}"
    if finding.action == "stop":
        _note(run, step, finding.detector, "stop", why)
        raise PrefloopError(f"stopped at step {step} by {why}; likely: {finding.causes[0]}; {finding.remedy}")
    if finding.action in ("roll_back", "finish"):
        return _rolled_back(run, step, finding, why)
    if finding.action == "raise_beta":
        run.progress.beta = max(RAISE * run.progress.beta, LEAST_BETA)
        done = f"beta is now {run.progress.beta:.3g}"
    else:
        run.progress.rate_scale *= LOWER
        done = f"the learning rate is now {run.progress.rate_scale:.3g} of the scheduled"
    _note(run, step, finding.detector, finding.action, f"{why}: {done}")
    return run


def _rolled_back(run: Run, step: int, finding: Finding, why: str) -> Run:
    """Go on from the last checkpoint before the finding's first step, with half the learning rate and twice the beta: the
    same steps again would end alike. ``finish``: that checkpoint is the result."""
    before, finish = run.progress, finding.action == "finish"
    run = begin(run.job, run.worker, run.engine, before=finding.first_step)
    if finish and not run.progress.step:
        raise PrefloopError(f"stopped at step {step} by {why}; no checkpoint is from before that (save_steps); {finding.remedy}")
    if not finish:
        run.progress.rate_scale = before.rate_scale * LOWER
        run.progress.beta = max(RAISE * before.beta, LEAST_BETA)
    run.progress = replace(run.progress, left_out=before.left_out, actions=before.actions, finished=finish)
    done = "the run ends there" if finish else "half the learning rate and twice the beta from there"
    _note(run, step, finding.detector, finding.action, f"{why}: rolled back to step {run.progress.step}, {done}")
    barrier()  # every worker has read its checkpoint
    if run.worker.rank == 0:
        checkpoints.drop_from(folder(run.job), run.progress.step + 1)
        drop_snapshots(run.job.scratch, run.progress.step + 1)
    if run.progress.step:
        save(run)
    barrier()
    return run


def _note(run: Run, step: int, detector: str, action: str, text: str) -> None:
    run.progress.record(step, detector, action)
    count = f"action {len(run.progress.actions)} of {MOST}"
    run.worker.journal.log(step, run.job.params.steps, note=f"{count}, {action}: step {step}: {text}")
