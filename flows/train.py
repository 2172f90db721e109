"""The flow ``train``: every stage of dvc.yaml brought up to date, in the order of DVC's graph, one Prefect task a stage.

Prefect decides when, DVC whether and what: the graph is read from DVC, and each task is one ``dvc repro --single-item``.
So ``dvc repro`` alone gives the same bytes. What is published (MLflow, Prefect, the report's copy) is added around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines import config
from pipelines.runner import prune_stale_policies
from tasks import processes, publish, versions
from tasks.stages import run_stage

Submit = Callable[[versions.Planned, list[PrefectFuture[Any]]], PrefectFuture[Any]]


RUNNER: Any = ThreadPoolTaskRunner(max_workers=64)
"""Wide enough for any graph: ``runtime.parallel_stages`` is what bounds it."""


@flow(name="train", task_runner=RUNNER, persist_result=False, retries=0)
def train(only: tuple[str, ...] = (), force: bool = False, root: str = ".") -> list[dict[str, Any]]:
    """Bring all stages (or ``only`` these) up to date; ``force`` runs them whatever DVC remembers.

    Returns ``{"stage", "outcome", "seconds"}`` a stage. Raises the error of the first stage that failed; those that ran
    beside it are let to their end, none is started after it.
    """
    # 1. the configuration, then what DVC says: the graph, and what is not up to date
    folder = Path(root).resolve()
    params = config.load(Path(os.path.relpath(folder / config.PARAMS)))
    prune_stale_policies(folder, params)
    plan = versions.plan(folder, only, force)
    if not force:
        versions.refuse_foreign(plan)

    # 2. the rim, once for the whole flow: MLflow's parent run, a Ray cluster where there are workers
    with ExitStack() as rim:
        tags = {"prefect.flow_run": str(flow_run.id), "git.commit": publish.commit(folder)}
        mlflow_run = rim.enter_context(publish.parent_run(folder, plan, tags))
        rim.enter_context(workers(plan, params.runtime))

        # 3. the stages
        def submit(planned: versions.Planned, before: list[PrefectFuture[Any]]) -> PrefectFuture[Any]:
            return run_stage.submit(planned.stage, str(folder), planned.action, force, wait_for=before, return_state=False)

        results = walk(plan, params.runtime.parallel_stages, submit)
        if params.runtime.parallel_stages > 1:
            versions.order_lock(folder)

    # 4. what people look at, when it belongs to what is there now
    if any(result["stage"] == publish.LAST for result in results):
        publish.summary(folder)
        publish.report(folder, mlflow_run, str(flow_run.id))
    return results


@contextmanager
def workers(plan: versions.Plan, runtime: config.Runtime) -> Iterator[None]:
    """One Ray cluster for all stages of the flow, where there are workers, no address and something to run."""
    if not (runtime.workers and plan.names("run")):
        yield
        return
    from pipelines.adapters import cluster

    with cluster.start_local(runtime):
        yield


def walk(plan: versions.Plan, parallel: int, submit: Submit) -> list[dict[str, Any]]:
    """Submit each stage once those before it have ended, at most ``parallel`` at a time; collect their results.

    Whatever interrupts us (Ctrl-C, SIGTERM, a cancellation) stops every stage at once and goes on its way.
    """
    waiting = list(plan.stages)
    futures: dict[str, PrefectFuture[Any]] = {}
    running: dict[PrefectFuture[Any], str] = {}
    results: dict[str, dict[str, Any]] = {}
    failure: Exception | None = None
    try:
        while waiting or running:
            for planned in [entry for entry in waiting if set(entry.after) <= set(results)]:
                if failure is None and len(running) < parallel:
                    waiting.remove(planned)
                    future = submit(planned, [futures[name] for name in planned.after])
                    futures[planned.stage], running[future] = future, planned.stage
            if not running:
                break
            ended = next(as_completed(list(running)))
            stage = running.pop(ended)
            try:
                results[stage] = ended.result()
            except Exception as error:
                failure = failure or error
    except BaseException:
        processes.stop_all()
        raise
    if failure is not None:
        raise failure
    return [results[planned.stage] for planned in plan.stages]
