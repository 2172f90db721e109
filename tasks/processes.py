"""Child processes that cannot outlive us: each in a process group of its own, which is stopped whole.

A terminal's Ctrl-C reaches our own group only, so the children are stopped by us and in order. On Linux a child also asks
for a signal when the thread that started it dies, and takes its group with it (DVC's shell stands between DVC and the
stage, so DVC's own death would not reach the stage): a ``kill -9`` leaves nothing running either.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE = 3.0
"""Seconds between the polite signal (SIGINT) and SIGKILL."""

LAUNCH = """
import ctypes, os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
if os.getpgid(0) == os.getpid():
    signal.signal(signal.SIGTERM, lambda number, frame: os.killpg(0, signal.SIGKILL))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(137)
module, sys.argv = sys.argv[2], sys.argv[2:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

stopping = threading.Event()
"""Set once we have been told to stop: no child is started and nothing is tried again after that."""

_running: set[subprocess.Popen[Any]] = set()
_lock = threading.RLock()


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line of ``python -m MODULE ARGUMENTS`` for a child that ends with the thread that starts it."""
    return [sys.executable, "-c", LAUNCH, str(os.getpid()), module, *arguments]


def start(module: str, arguments: Sequence[str], root: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start ``python -m MODULE ARGUMENTS`` in a session of its own, stdout and stderr in one pipe."""
    with _lock:
        if stopping.is_set():
            raise KeyboardInterrupt
        process = subprocess.Popen(
            command(module, arguments),
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        _running.add(process)
    return process


def follow(process: subprocess.Popen[str], each_line: Callable[[str], None]) -> int:
    """Hand every line on until the process has ended; its group is gone when this returns. Returns the exit code."""

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            each_line(line.rstrip("\n"))

    reader = threading.Thread(target=read, name=f"output of {process.pid}", daemon=True)
    reader.start()
    try:
        return process.wait()
    finally:
        stop(process)
        reader.join(timeout=5)


def stop(process: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """Interrupt the whole group, give it ``grace`` seconds, then kill what is left of it."""
    with suppress(ProcessLookupError, PermissionError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with _lock:
        _running.discard(process)


def stop_all() -> None:
    """Stop every group side by side; from now on ``start`` refuses."""
    with _lock:
        stopping.set()
        children = list(_running)
    threads = [threading.Thread(target=stop, args=(child,)) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
