"""What a stage's bytes may depend on besides code, data and parameters."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.config import Runtime

ENVIRONMENT = "prefloop.environment"
"""The tag of a stage's run that holds it, as JSON."""

LIBRARIES = ("torch", "transformers", "trl", "peft", "ray", "dvc", "prefect")
FLAGS = ("avx", "amx", "sse4", "fma", "bf16", "f16c", "asimd", "sve")


def environment(runtime: Runtime) -> dict[str, str]:
    """Versions, workers, threads, the processor's vector instructions: of this machine now."""
    facts = {"python": platform.python_version(), "machine": platform.machine(), "cpu flags": _flags()}
    facts |= {"threads": str(runtime.threads), "workers": str(runtime.workers), "gpus a worker": str(runtime.gpus_per_worker)}
    return facts | {name: _installed(name) for name in LIBRARIES}


def _flags() -> str:
    """The processor's vector instructions: they decide the order in which sums are made."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    listed = next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return " ".join(sorted(flag for flag in listed if flag.startswith(FLAGS)))


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
