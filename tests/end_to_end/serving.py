"""``prefloop serve`` as a person starts it, for tests that are told its address."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.project import Project

NEVER = "cron: 0 0 1 1 *"


def schedule(project: Project, retrain: str = NEVER) -> None:
    """Let the flow retrain run by this line of prefect.yaml, and nothing else by a clock."""
    project.set(r"cron: 0 3 \* \* \*", retrain, "prefect.yaml")
    project.set(r"cron: 30 \* \* \* \*", NEVER, "prefect.yaml")


@contextmanager
def serving(project: Project) -> Iterator[str]:
    """Server, deployments and worker; the address of the Prefect API."""
    process = project.start("serve")
    try:
        said = ""
        for line in process.stdout or []:
            said += line
            if line.startswith("Prefect: "):
                break
        assert "Prefect: " in said, said
        assert process.stdout is not None
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop the worker
        yield said.rpartition("Prefect: ")[2].partition(";")[0] + "/api"
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
