"""The settings of a run that have to be made before Prefect is imported, and Prefect's embedded server.

The server is the one that Prefect embeds when no API is configured, started by us instead: in a session of its own (a
Ctrl-C reaches only us, so the run can still be recorded as interrupted) and killed with us.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import EnvironmentFault
from tasks import processes

START_TIMEOUT = 90.0
SERVER_GRACE = 20.0
PAGE_PORT = 4200
"""Where `make ui` shows what the embedded server has recorded, on 127.0.0.1."""
APP = ["--factory", "prefect.server.api.server:create_app", "--host", "127.0.0.1", "--log-level", "error", "--lifespan", "on"]


def find_root() -> Path:
    """The project's folder: the current one or the nearest above it with dvc.yaml and params.yaml's place."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").exists() and (folder / ".dvc").is_dir():
            return folder
    raise EnvironmentFault(f"{here}: not a prefloop project (no dvc.yaml and .dvc here or above); change into its folder")


def prepare(root: Path) -> None:
    """Quiet, private defaults; whatever the person has set stays.

    Prefect's database lives in the project (``.prefect/``), so a machine with an empty or read-only home works and
    projects do not share a history; a person's own profiles (``prefect cloud login``) are still read.
    """
    from pipelines.__main__ import DEFAULTS

    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    profiles = Path(os.path.expanduser("~/.prefect/profiles.toml"))
    if "PREFECT_HOME" not in os.environ and profiles.exists():
        os.environ.setdefault("PREFECT_PROFILES_PATH", str(profiles))
    os.environ.setdefault("PREFECT_HOME", str(root / ".prefect"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(int(START_TIMEOUT)))


def server_is_configured() -> bool:
    """Whether a Prefect API is named by the environment, a profile or a settings file.

    Prefect itself (a second of imports) is asked only where there is such a file.
    """
    if "PREFECT_API_URL" in os.environ:
        return bool(os.environ["PREFECT_API_URL"])
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or Path(os.environ["PREFECT_HOME"], "profiles.toml"))
    pyproject = Path("pyproject.toml")
    if not any(path.exists() for path in (profiles, Path("prefect.toml"), Path(".env"))) and not (
        pyproject.exists() and "[tool.prefect" in pyproject.read_text(encoding="utf-8")
    ):
        return False
    from prefect.settings import get_current_settings

    return bool(get_current_settings().api.url)


def server_is_at_hand() -> bool:
    """Whether there is a Prefect API: a configured one, or that of a `prefloop serve` or `make ui` here, which is used then."""
    if server_is_configured():
        return True
    url = pages_of_this_project()
    if url:
        os.environ["PREFECT_API_URL"] = url
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    return bool(url)


@contextmanager
def server_if_needed() -> Iterator[None]:
    """The configured Prefect API, or that of a running `make ui`, or an embedded server for as long as this lasts."""
    if server_is_configured():
        _check_api()
        yield
    elif url := pages_of_this_project():
        os.environ["PREFECT_API_URL"] = url
        try:
            yield
        finally:
            os.environ.pop("PREFECT_API_URL", None)
    else:
        with server():
            yield


def _check_api() -> None:
    """Say at once that the configured API is not there; a flow would try for a minute and then show a traceback."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        trouble = client.api_healthcheck()
        if trouble is not None:
            reason = " ".join(str(trouble).split()) or type(trouble).__name__
            raise EnvironmentFault(f"PREFECT_API_URL: {client.api_url} cannot be used ({reason}); start that server, or unset it")


@contextmanager
def server() -> Iterator[None]:
    """Prefect's embedded server for as long as this lasts, announced through PREFECT_API_URL."""
    port = free_port()
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            processes.command("uvicorn", [*APP, "--port", str(port)]),
            env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    shown = "PREFECT_UI_URL" in os.environ
    os.environ.setdefault("PREFECT_UI_URL", f"http://127.0.0.1:{PAGE_PORT}")  # this server has no pages of its own
    try:
        from prefect.context import refresh_global_settings_context

        import flows.train  # noqa: F401  (Prefect's imports take as long as the server's: side by side)

        refresh_global_settings_context()
        patience = float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
        wait_until_ready(process, os.environ["PREFECT_API_URL"], patience, log)
        yield
    finally:
        _send_what_is_queued()
        os.environ.pop("PREFECT_API_URL", None)
        if not shown:
            os.environ.pop("PREFECT_UI_URL")
        processes.stop(process, SERVER_GRACE)


def pages_of_this_project() -> str:
    """The API of a `make ui` that runs here (two servers on one SQLite file would lock each other out); else empty."""
    import httpx

    note = Path(os.environ["PREFECT_HOME"]) / "ui.url"
    if not note.exists():
        return ""
    url = note.read_text(encoding="utf-8").strip()
    try:
        return url if httpx.get(f"{url}/health", timeout=2.0).status_code == 200 else ""
    except httpx.HTTPError:
        return ""


def _send_what_is_queued() -> None:
    """Logs and events are sent by threads: wait for them, or they try for a minute to reach a server that is gone."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=5)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether someone listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until_ready(process: subprocess.Popen[bytes], url: str, seconds: float, log: Path) -> None:
    """Wait for the API of a Prefect server that we have started. Raises EnvironmentFault where it ends or never answers."""
    import httpx

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EnvironmentFault(f"Prefect's server ended with {process.returncode} while starting; see {log}")
        try:
            if httpx.get(f"{url}/health", timeout=5.0).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise EnvironmentFault(f"Prefect's server did not answer within {seconds:.0f} s; see {log}")


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Refuse to run beside another ``prefloop run`` in the same folder; the lock goes with the process."""
    path = root / ".runs" / "flow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise EnvironmentFault(
                f"another `prefloop run` is at work in {root} (process {lock.read().strip()}); wait for it or stop it"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
