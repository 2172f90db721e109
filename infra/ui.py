"""Prefect's and MLflow's pages on 127.0.0.1 (`make ui`): what ran, and with which numbers. Ctrl-C ends both.

    python infra/ui.py [--prefect-port 4200] [--mlflow-port 5000]

They read the same files as the runs (``.prefect/``, ``mlflow.db``); what is configured elsewhere (PREFECT_API_URL,
MLFLOW_TRACKING_URI with a server) is only named. A ``prefloop run`` beside them uses this Prefect server.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from flows import environment  # noqa: E402  (the script is called by its path)
from pipelines.adapters.spool import PAGE_PORT, store_uri  # noqa: E402
from pipelines.errors import EnvironmentFault  # noqa: E402
from tasks import processes  # noqa: E402

HOST = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 10.0


def main() -> int:
    """Start what is not configured elsewhere, say where, wait for Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefect-port", type=int, default=environment.PAGE_PORT)
    parser.add_argument("--mlflow-port", type=int, default=PAGE_PORT)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    os.chdir(ROOT)
    environment.prepare(ROOT)
    try:
        with ExitStack() as pages:
            watched = start(pages, options.prefect_port, options.mlflow_port)
            print("Ctrl-C ends them" if watched else "nothing to start here", flush=True)
            while watched:
                time.sleep(1.0)
                for name, process in watched.items():
                    if process.poll() is not None:
                        raise EnvironmentFault(
                            f"{name}'s server ended with {process.returncode}; see {log_of(name).relative_to(ROOT)}"
                        )
    except EnvironmentFault as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except KeyboardInterrupt:
        print("\nended", flush=True)
        return 130
    return 0


def start(pages: ExitStack, prefect_port: int, mlflow_port: int) -> dict[str, subprocess.Popen[bytes]]:
    """Start both servers, ports checked first; each page's address is printed once it answers."""
    wanted = {}
    if environment.server_is_configured():
        print(f"Prefect: configured elsewhere ({os.environ.get('PREFECT_API_URL', 'in a profile')})")
    else:
        wanted["Prefect"] = prefect_port
    if store_uri(ROOT).startswith(("http:", "https:")):
        print(f"MLflow:  configured elsewhere ({store_uri(ROOT)})")
    else:
        wanted["MLflow"] = mlflow_port
    for name, port in wanted.items():
        if environment.listening(port):
            option = f"--{name.lower()}-port"
            raise EnvironmentFault(
                f"port {port} of {HOST} is in use, {name}'s page needs it: end what listens there, or give {option} another"
            )
    commands = {
        "Prefect": ("prefect", ["server", "start", "--host", HOST, "--port", str(prefect_port), "--analytics-off"], "api/health"),
        "MLflow": ("mlflow", ["server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1", "--backend-store-uri",
                              store_uri(ROOT), "--default-artifact-root", (ROOT / "mlruns").as_uri()], "health"),
    }  # fmt: skip
    started = {name: pages.enter_context(server(name, *commands[name][:2])) for name in wanted}
    for name, port in wanted.items():
        wait(name, started[name], f"http://{HOST}:{port}/{commands[name][2]}")
        print(f"{name + ':':8} http://{HOST}:{port}", flush=True)
    if "Prefect" in wanted:
        pages.enter_context(announced(f"http://{HOST}:{prefect_port}/api"))
    return started


@contextmanager
def server(name: str, module: str, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process in a session of its own that ends with us, its output in a log file."""
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log_of(name).parent.mkdir(parents=True, exist_ok=True)
    with log_of(name).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(processes.command(module, arguments), cwd=ROOT, env=variables, stdin=subprocess.DEVNULL,
                                   stdout=output, stderr=output, start_new_session=True)  # fmt: skip
    try:
        yield process
    finally:
        processes.stop(process, STOP_SECONDS)


@contextmanager
def announced(url: str) -> Iterator[None]:
    """Let ``prefloop run`` find this Prefect server: two servers on one SQLite file would lock each other out."""
    note = Path(os.environ["PREFECT_HOME"]) / "ui.url"
    note.write_text(url, encoding="utf-8")
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def wait(name: str, process: subprocess.Popen[bytes], url: str) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EnvironmentFault(
                f"{name}'s server ended with {process.returncode} while starting; see {log_of(name).relative_to(ROOT)}"
            )
        try:
            with urlopen(url, timeout=5.0) as answer:
                if answer.status == 200:
                    return
        except (URLError, OSError):
            pass
        time.sleep(0.2)
    raise EnvironmentFault(f"{name}'s server did not answer within {START_SECONDS:.0f} s; see {log_of(name).relative_to(ROOT)}")


def log_of(name: str) -> Path:
    """Where a server's output goes."""
    return ROOT / ".runs" / "ui" / f"{name.lower()}.log"


if __name__ == "__main__":
    sys.exit(main())
