"""Starting, joining and leaving a Ray cluster: quiet, with a token, and gone when its context is left."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.adapters.spool import started_at
from pipelines.config import Runtime
from pipelines.errors import EnvironmentFault

ADDRESS = "PREFLOOP_RAY_ADDRESS"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
FOLDER = "prefloop-ray"
OBJECT_STORE_BYTES = 256 * 2**20
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
PASSED_ON = (
    "CUBLAS_WORKSPACE_CONFIG",
    "GOMP_SPINCOUNT",
    "HF_HOME",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_VERBOSITY",
)


@contextmanager
def started(runtime: Runtime) -> Iterator[str]:
    """A cluster on this machine that lives as long as this process at the most; yields its address."""
    import ray

    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    _use_token(create=True)
    cpus = threads_of(runtime) * runtime.workers * runtime.parallel_stages
    gpus = math.ceil(runtime.gpus_per_worker * runtime.workers) if runtime.gpus_per_worker else None
    folder = _scratch_folder()
    try:
        with _own_signal_handlers():
            ray.init(
                address="local",  # without it Ray joins any cluster that this machine runs, or ran
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
                **_common(),
            )
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined(address: str) -> Iterator[str]:
    """Connect this process to a running cluster for as long as the context lasts."""
    import ray

    if ray.is_initialized():
        yield address
        return
    _use_token(create=False)
    _knock(address)
    try:
        with _own_signal_handlers():
            ray.init(address=address, **_common())
    except Exception as error:  # ConnectionError, AuthenticationError, RuntimeError: Ray has no common class for them
        raise _unusable(address, first_line(error)) from error
    try:
        yield address
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray tries for minutes where nobody listens."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise _unusable(address, error.strerror or str(error)) from error


def _unusable(address: str, reason: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"runtime.ray.address or {ADDRESS}: no Ray cluster can be used at {address} ({reason}); "
        "start one (python infra/two_nodes.py start), correct the address, or leave it empty"
    )


def _scratch_folder() -> Path:
    """A fresh private folder for a cluster's sockets and logs; short, because a socket's path may have 107 characters.

    Removes those of clusters whose process was killed and could not.
    """
    place = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    for old in place.glob(f"{FOLDER}-*-*"):
        with contextlib.suppress(OSError, ValueError):
            if old.stat().st_uid == os.getuid() and not started_at(int(old.name.split("-")[-2])):
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{FOLDER}-{os.getpid()}-", dir=place))


def _common() -> dict[str, Any]:
    """Quiet, and workers that import the project from where the driver does."""
    path = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "namespace": "prefloop",
        "runtime_env": {"env_vars": {**QUIET, **passed, "PYTHONPATH": path}},
    }


def _use_token(create: bool) -> None:
    """Token authentication, with the project's own token file unless the environment names another.

    Ray itself would write its token readable for everybody, and in the home directory.
    """
    if any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    else:
        path = Path.cwd() / ".runs" / "ray" / "token"
        if create:
            write_token(path)
        if not path.exists():
            return
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")  # Ray has read the mode when it was imported, which local mode may have done long ago
    AuthenticationTokenLoader.instance().reset_cache()


def write_token(path: Path) -> None:
    """Write a fresh token that only its owner can read, unless there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """``ray.init`` replaces the handler of SIGTERM; the stage's has to stay (it tells the tracker)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def threads_of(runtime: Runtime) -> int:
    """Threads of one worker: the stage's, split."""
    return max(1, runtime.threads // max(1, runtime.workers))


def resources_of(runtime: Runtime) -> dict[str, float]:
    """What one worker asks for."""
    need: dict[str, float] = {"CPU": threads_of(runtime)}
    return {**need, "GPU": runtime.gpus_per_worker} if runtime.gpus_per_worker else need


def first_line(error: BaseException) -> str:
    """An error in one line: Ray's have whole tracebacks as their text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
