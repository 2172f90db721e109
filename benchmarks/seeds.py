"""The default recipe over several seeds, each the whole pipeline in a worktree of its own; none is replaced.

    python benchmarks/seeds.py --seeds 1 2 3 4 5

Runs ``prefloop run --seeds ...`` and records each seed's report and each stage's seconds and memory.
``--collect`` only records what an earlier run left under .runs/worktrees.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, facts, save


def main() -> None:
    """Run (unless told to collect only), then record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--collect", action="store_true", help="only record what is there")
    options = parser.parse_args()
    command = "prefloop run --seeds " + " ".join(map(str, options.seeds))
    if not options.collect:
        prefloop = Path(sys.executable).with_name("prefloop")
        subprocess.run([str(prefloop), *command.split()[1:]], cwd=ROOT, check=True)
    save("seeds", {**facts(command), "seeds": {str(seed): record(seed) for seed in options.seeds}})


def record(seed: int) -> dict[str, Any]:
    """One seed: the report's metrics, and what each stage that really ran took."""
    folder = ROOT / ".runs" / "worktrees" / f"seed-{seed}"
    report = json.loads((folder / "artifacts" / "report" / "metrics.json").read_text())
    stages = {path.parent.name: json.loads(path.read_text()) for path in sorted((folder / ".runs").glob("*/last.json"))}
    return {"report": report, "stages": stages}


if __name__ == "__main__":
    main()
