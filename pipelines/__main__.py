"""``python -m pipelines STAGE``: the only command that dvc.yaml knows."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import PrefloopError

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Environment variables of all our processes, unless the user has set them."""

COMMANDS = {
    "challenge": "challenge",
    "collect": "collect",
    "compare": "compare",
    "data": "dataset",
    "doctor": "doctor",
    "generate": "generate",
    "observe": "observe",
    "revise": "revise",
}
"""What is no stage, and its module of this package, which has ``main(arguments, root)``."""

COLLECT_EVERY = 50_000
"""New objects between two looks for cyclic garbage. Imports make them by the million and keep them: with Python's 700 the
collector took a fifth of a stage's start."""


def main() -> int:
    """Run the stage that the command line names, or what is no stage: ``doctor`` looks at a run, ``generate`` tries a model."""
    gc.set_threshold(COLLECT_EVERY)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in COMMANDS:
        return run_command(command, sys.argv[2:], Path.cwd())
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m pipelines STAGE   (a stage as dvc.yaml names it: sft, policy@ppo, ...)", file=sys.stderr)
        return 0 if "--help" in sys.argv or "-h" in sys.argv else 3
    from pipelines import runner

    return runner.main(sys.argv[1], Path.cwd())


def run_command(name: str, arguments: Sequence[str], root: Path) -> int:
    """Run one of COMMANDS; return its exit code. What a person can mend is one line on stderr."""
    try:
        importlib.import_module(f"pipelines.{COMMANDS[name]}").main(arguments, root)
        return 0
    except PrefloopError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
