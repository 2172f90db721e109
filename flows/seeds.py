"""``prefloop run --seeds 1 2 3``: the whole pipeline once a seed, each in a git worktree of its own.

A worktree holds HEAD's code and the current params.yaml with the seed replaced; DVC's cache, MLflow's store and Prefect's
server are shared with this folder, so what a seed does not change (the base model) is not made twice.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

from flows import estimates, recipes
from pipelines import config
from pipelines.errors import EnvironmentFault
from tasks import processes, publish, repository, versions
from tasks.worktrees import copy, pull_inputs, untracked_sources

FOLDER = Path(".runs/worktrees")
RESULT = publish.SEEDS
MEASURES = tuple(publish.MEASURES)
CODE = ("flows", "tasks", "pipelines", "dvc.yaml", ".dvc")
SEED = re.compile(r"^seed:.*$", re.MULTILINE)


def run(root: Path, seeds: list[int], force: bool) -> int:
    """Run every seed, one after the other, print and write the table; return the first exit code that is not 0."""
    reports: dict[int, dict[str, Any]] = {}
    codes: dict[int, int] = {}
    for seed in seeds:
        folder = prepare(root, seed)
        print(f"\nseed {seed}: {folder.relative_to(root)}", flush=True)
        codes[seed] = _run_one(root, folder, force)
        if codes[seed] in (130, 143):
            break
        path = folder / "artifacts" / "report" / "metrics.json"
        if codes[seed] == 0 and path.exists():
            reports[seed] = json.loads(path.read_text(encoding="utf-8"))
    write(root / RESULT, reports, codes, publish.parameters(root))
    publish.renew_seeds(root)
    print("\n" + table(reports, codes) + f"\n\nwritten: {RESULT}", flush=True)
    return next((code for code in codes.values() if code), 0)


def refuse_uncommitted(root: Path) -> None:
    """A worktree has the committed code and data: with others here, the seeds would not show what this folder does."""
    changed = recipes.git(root, "diff", "--name-only", "HEAD").splitlines()
    fresh = recipes.git(root, "ls-files", "--others", "--exclude-standard").splitlines()
    copied = untracked_sources(root)
    watched = (*CODE, *(path for path in versions.sources(root) if path not in copied))
    differing = [path for path in (*changed, *fresh) if any(path == name or path.startswith(f"{name}/") for name in watched)]
    if differing:
        shown = ", ".join(differing[:5]) + (f" and {len(differing) - 5} more" if len(differing) > 5 else "")
        raise EnvironmentFault(
            f"--seeds runs what is committed, and {shown} differs from it: commit first (params.yaml may differ)"
        )


def prepare(root: Path, seed: int) -> Path:
    """Make, or renew, the worktree of a seed: HEAD's files, the parameters, the shared cache, sources that git does not hold."""
    folder = root / FOLDER / f"seed-{seed}"
    recipes.git(root, "worktree", "prune")
    if (folder / ".git").exists():
        recipes.git(folder, "checkout", "--quiet", "--force", "--detach", recipes.git(root, "rev-parse", "HEAD"))
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recipes.git(root, "worktree", "add", "--quiet", "--force", "--detach", str(folder), "HEAD")
    text = (root / config.PARAMS).read_text(encoding="utf-8")
    line = f"seed: {seed}"
    (folder / config.PARAMS).write_text(
        SEED.sub(line, text, count=1) if SEED.search(text) else f"{line}\n{text}", encoding="utf-8"
    )
    config.load(folder / config.PARAMS)
    repository.share_cache(root, folder)
    for relative in untracked_sources(root):
        copy(root / relative, folder / relative)
    pull_inputs(folder)
    return folder


def table(reports: dict[int, dict[str, Any]], codes: dict[int, int]) -> str:
    """Every seed, then mean and spread (standard deviation over seeds), a block a policy."""
    rows: list[tuple[str, ...]] = [("policy", "seed", *MEASURES, "win rate 95 %")]
    for name in sorted({name for report in reports.values() for name in report["policies"]}):
        found = {seed: report["policies"][name] for seed, report in reports.items() if name in report["policies"]}
        for seed, policy in found.items():
            low, high = policy["win_rate_ci"]
            rows.append((name, str(seed), *(f"{policy[key]:.3f}" for key in MEASURES), f"{low:.3f} to {high:.3f}"))
        for word, fold in (("mean", statistics.fmean), ("spread", _spread)):
            rows.append((name, word, *(f"{fold([policy[key] for policy in found.values()]):.3f}" for key in MEASURES), ""))
    failed = [f"seed {seed}: ended with {code}" for seed, code in codes.items() if code]
    return "\n".join([*estimates.aligned(rows), *failed])


def write(path: Path, reports: dict[int, dict[str, Any]], codes: dict[int, int], parameters: str) -> None:
    """Every seed's report and exit code, none left out, and the mean and spread over seeds."""
    summary: dict[str, Any] = {}
    for name in sorted({name for report in reports.values() for name in report["policies"]}):
        found = [report["policies"][name] for report in reports.values() if name in report["policies"]]
        values = {key: [float(policy[key]) for policy in found] for key in MEASURES}
        summary[name] = {key: {"mean": statistics.fmean(of), "spread": _spread(of)} for key, of in values.items()}
    content = {
        "seeds": {str(seed): {"exit_code": code, "report": reports.get(seed)} for seed, code in codes.items()},
        "summary": summary,
        "parameters": parameters,
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)


def _run_one(root: Path, folder: Path, force: bool) -> int:
    """The flow in the worktree, with the worktree's code (the current folder comes first on the path); it dies with us."""
    from pipelines.adapters.spool import store_uri

    environment = {**os.environ, "MLFLOW_TRACKING_URI": store_uri(root)}
    environment.pop("PYTHONSAFEPATH", None)
    command = processes.command("flows", ["run", *(["--force"] if force else [])])
    with subprocess.Popen(command, cwd=folder, env=environment) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            return child.wait() or 130  # the terminal has interrupted the child too; it stops its stages
        except BaseException:
            child.terminate()
            raise


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
