"""`make ui`: the pages, their ports, and nothing left behind."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

import psutil
import pytest

from tests.project import ROOT, Project


@contextmanager
def listening() -> Iterator[int]:
    """Someone else's server on a port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def ui(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """``python infra/ui.py`` of a project."""
    (project.folder / "infra").mkdir(exist_ok=True)
    shutil.copy2(ROOT / "infra" / "ui.py", project.folder / "infra" / "ui.py")
    command = [sys.executable, "infra/ui.py", *arguments]
    return subprocess.Popen(
        command, cwd=project.folder, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(("option", "name"), [("--prefect-port", "Prefect"), ("--mlflow-port", "MLflow")])
def test_a_port_in_use_is_named(offline: Project, option: str, name: str) -> None:
    from flows.environment import free_port

    with listening() as port:
        free = [] if option == "--prefect-port" else ["--prefect-port", str(free_port())]
        process = ui(offline, option, str(port), *free)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    [line] = printed.splitlines()
    assert line.startswith(f"error: port {port} of 127.0.0.1 is in use, {name}'s page needs it")
    assert option in line


@pytest.mark.slow
def test_both_pages_answer_a_run_uses_them_and_nothing_is_left(offline: Project) -> None:
    from flows.environment import free_port

    ports = free_port(), free_port()
    process = ui(offline, "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines == [f"Prefect: http://127.0.0.1:{ports[0]}\n", f"MLflow:  http://127.0.0.1:{ports[1]}\n", "Ctrl-C ends them\n"]
    for port in ports:
        with urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert page.status == 200
    code, printed = offline.prefloop("run")
    assert code == 0, printed
    assert not (offline.folder / ".prefect/server.log").exists(), "no second server on the same database"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not (offline.folder / ".prefect/ui.url").exists()
