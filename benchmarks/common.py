"""What every benchmark records beside its numbers: command, commit, machine, versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
WRITTEN = (":!README.md", ":!docs", ":!benchmarks/results")
"""What the benchmarks themselves write, no part of what is measured; one that saves after each seed has changed it before."""


def facts(command: str) -> dict[str, Any]:
    """Provenance of a measurement. No host name and no path: only what explains the numbers."""
    return {
        "command": command,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", *WRITTEN)),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "prefect", "mlflow", "dvc", "ray")},
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Write ``benchmarks/results/NAME.json`` and renew the tables and figures in docs/."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for script in ("tables.py", "figures.py"):
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / script)], check=True)


def code() -> str:
    """Git's hash of the pipeline's code, as it is committed."""
    return _git("rev-parse", "HEAD:pipelines")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    """The model name and the vector extensions that decide how fast bfloat16 is."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    found = {key.strip(): value.strip() for key, value in lines.items()}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    return f"{found.get('model name', 'unknown')} ({', '.join(flags)})"
