"""``prefloop deploy`` and ``prefloop serve``: what prefect.yaml says, on a Prefect server; a worker that does it.

Two automations come with it: a run whose process died without a word is closed as Crashed (else its slot is never freed),
and a run that failed or crashed is told to whoever ``PREFLOOP_NOTIFY`` names (a block of Prefect, such as ``slack-webhook/me``).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows import environment
from pipelines.errors import ConfigurationError, EnvironmentFault
from tasks import processes

POOL = "prefloop"
NOTIFY = "PREFLOOP_NOTIFY"
BEAT = 30
"""Seconds between heartbeats (prefect.yaml); three that stay away are a dead run."""
START_SECONDS = 180.0


def deploy(root: Path) -> list[str]:
    """Work pool, deployments and automations on the configured server; returns the deployments' names. Safe to repeat."""
    from prefect.client.orchestration import get_client

    if not (root / "prefect.yaml").exists():
        raise ConfigurationError("prefect.yaml: no such file; `git checkout prefect.yaml` restores the project's")
    _pool()
    arguments = ["--no-prompt", "deploy", "--all", "--prefect-file", "prefect.yaml"]
    environment_ = {**variables(root), "COLUMNS": "1000"}  # a message on one line: the last is what is told
    done = subprocess.run(
        processes.command("prefect", arguments), cwd=root, env=environment_, capture_output=True, text=True, timeout=600
    )
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise ConfigurationError(f"prefect.yaml: could not be deployed: {said[-1] if said else done.returncode}")
    for automation in automations():
        _renew(automation)
    with get_client(sync_client=True) as client:
        found = client.read_deployments()
    return sorted(f"{one.name}" for one in found if one.work_pool_name == POOL)


def automations() -> list[Any]:
    """Zombies are closed; failures are told, where somebody is named."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState, SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    runs = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")}
    beat = "prefect.flow-run.heartbeat"
    wanted = [
        AutomationCore(
            name="prefloop: close runs whose process died",
            trigger=EventTrigger(
                after={beat}, expect={beat, *ended}, match=runs, for_each={"prefect.resource.id"},
                posture=Posture.Proactive, threshold=1, within=timedelta(seconds=3 * BEAT),
            ),
            actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message="its process died: no heartbeat",
                                        force=False)],
        )
    ]  # fmt: skip
    if NOTIFY in os.environ:
        failed = {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
        told = SendNotification(
            block_document_id=_block(os.environ[NOTIFY]),
            subject="prefloop: {{ flow.name }} {{ flow_run.state.name }}",
            body="{{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
        )
        wanted.append(
            AutomationCore(
                name="prefloop: tell of failures",
                trigger=EventTrigger(expect=failed, match=runs, posture=Posture.Reactive, threshold=1),
                actions=[told],
            )
        )
    return wanted


@contextmanager
def serving(root: Path, poll: float = 5.0) -> Iterator[subprocess.Popen[bytes]]:
    """A server with its schedulers (unless one is configured), the deployments, and a worker; yields the worker's process."""
    with ExitStack() as stack:
        if not environment.server_is_configured():
            stack.enter_context(_server(root))
        deploy(root)
        arguments = ["worker", "start", "--pool", POOL, "--type", "process", "--name", "prefloop"]
        extra = {"PREFECT_WORKER_QUERY_SECONDS": str(poll)}
        yield stack.enter_context(_process("worker", "prefect", arguments, {**variables(root), **extra}, root))


def serve(root: Path) -> int:
    """Serve until Ctrl-C, or until the worker ends."""
    with serving(root) as worker:
        print(f"Prefect: {os.environ['PREFECT_API_URL'].removesuffix('/api')}; Ctrl-C ends it", flush=True)
        while worker.poll() is None:
            time.sleep(1.0)
    raise EnvironmentFault(f"the worker ended with {worker.returncode}; see .runs/serve/worker.log")


def variables(root: Path) -> dict[str, str]:
    """What prefect.yaml is filled in with, and what the worker hands on."""
    path = os.pathsep.join([str(root.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PREFLOOP_ROOT": str(root.resolve()), "PREFLOOP_PATH": path, "PYTHONPATH": path}


@contextmanager
def _server(root: Path) -> Iterator[None]:
    """That of a `make ui` here, or ``prefect server start``: unlike the embedded one these have scheduler and automations.

    Its address is noted for every ``prefloop run`` beside it: two servers on one SQLite file would lock each other out.
    """
    if url := environment.pages_of_this_project():
        with _announced(url):
            yield
        return
    port = environment.free_port()
    arguments = ["server", "start", "--host", "127.0.0.1", "--port", str(port), "--analytics-off"]
    note = Path(os.environ["PREFECT_HOME"]) / "ui.url"
    note.parent.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}/api"
    with _process("server", "prefect", arguments, dict(os.environ), root) as process:
        environment.wait_until_ready(process, url, START_SECONDS, Path(".runs/serve/server.log"))
        note.write_text(url, encoding="utf-8")
        try:
            with _announced(url):
                yield
        finally:
            note.unlink(missing_ok=True)


@contextmanager
def _announced(url: str) -> Iterator[None]:
    """Let this process and its children use a server."""
    from prefect.context import refresh_global_settings_context

    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()
    try:
        yield
    finally:
        os.environ.pop("PREFECT_API_URL", None)


@contextmanager
def _process(
    name: str, module: str, arguments: list[str], variables: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a process group of its own that ends with us; its output in .runs/serve/NAME.log."""
    log = folder / ".runs" / "serve" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(processes.command(module, arguments), cwd=folder, env=variables, stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=output, start_new_session=True)  # fmt: skip
    try:
        yield process
    finally:
        processes.stop(process, environment.SERVER_GRACE)


def _pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            return


def _renew(automation: Any) -> None:
    """The automation under its name, whatever was there under that name."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for old in client.read_automations_by_name(automation.name):
            client.delete_automation(old.id)
        client.create_automation(automation)


def _block(slug: str) -> Any:
    """The id of the block ``TYPE/NAME``."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    kind, _, name = slug.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(name, kind).id
        except ObjectNotFound as error:
            raise ConfigurationError(
                f"{NOTIFY}={slug}: Prefect has no such block; write TYPE/NAME as its Blocks page does"
            ) from error
