"""``python -m pipelines STAGE``: the only command that dvc.yaml knows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def main() -> int:
    """Run the stage that the command line names; ``generate``, ``compare`` and ``data`` try models and look at data instead."""
    if sys.argv[1:2] == ["data"]:
        from pipelines import dataset

        return dataset.main(sys.argv[2:], Path.cwd())
    if sys.argv[1:2] == ["generate"]:
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        from pipelines import generate

        return generate.main(sys.argv[2:], Path.cwd())
    if sys.argv[1:2] == ["compare"]:
        os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
        from pipelines import compare

        return compare.main(sys.argv[2:], Path.cwd())
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m pipelines STAGE   (a stage as dvc.yaml names it: sft, policy@ppo, ...)", file=sys.stderr)
        return 0 if "--help" in sys.argv or "-h" in sys.argv else 3
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from pipelines import runner

    return runner.main(sys.argv[1], Path.cwd())


if __name__ == "__main__":
    sys.exit(main())
