"""Recipes: complete params files under recipes/. ``use`` makes one the current params.yaml, ``commit`` records a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipelines import config
from pipelines.errors import ConfigurationError
from tasks import versions
from tasks.repository import git as git


def names(root: Path) -> list[str]:
    """The recipes there are."""
    return sorted(path.stem for path in (root / "recipes").glob("*.yaml"))


def title(root: Path, name: str) -> str:
    """A recipe's first comment line: what it is for."""
    for line in (root / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
    return ""


def current(root: Path) -> str:
    """The recipe that params.yaml is a copy of; empty when it is none."""
    path = root / config.PARAMS
    text = path.read_bytes() if path.exists() else b""
    return next((name for name in names(root) if (root / "recipes" / f"{name}.yaml").read_bytes() == text), "")


def use(root: Path, name: str, force: bool) -> None:
    """Copy a recipe to params.yaml. Raises ConfigurationError rather than overwrite edits that are recorded nowhere."""
    from pipelines.runner import prune_stale_policies

    if name not in names(root):
        raise ConfigurationError(f"recipes/{name}.yaml: no such recipe; recipes: {', '.join(names(root))}")
    source, target = root / "recipes" / f"{name}.yaml", root / config.PARAMS
    params = config.load(Path("recipes", f"{name}.yaml"))
    if target.exists() and not force and not _recorded(root, target):
        raise ConfigurationError(
            "params.yaml: has edits that neither a recipe nor git has; keep them (`cp params.yaml recipes/mine.yaml`, "
            f"or commit them), or overwrite them with `prefloop use {name} --force`"
        )
    fresh = target.with_suffix(".yaml.new")
    fresh.write_bytes(source.read_bytes())
    fresh.replace(target)
    prune_stale_policies(root, params)


def commit(root: Path, message: str) -> str:
    """Commit params.yaml and dvc.lock, and nothing else, when the lock is what these parameters give; return the new commit."""
    config.load()
    plan = versions.plan(root)
    if not plan.idle:
        stages = ", ".join(planned.stage for planned in plan.stages if planned.action != "unchanged")
        raise ConfigurationError(f"dvc.lock: does not belong to params.yaml ({stages} not up to date); `prefloop run` first")
    files = ["params.yaml", "dvc.lock"]
    git(root, "add", "--", *files)
    if not git(root, "diff", "--cached", "--name-only", "--", *files):
        raise ConfigurationError("nothing to record: params.yaml and dvc.lock are as in the last commit")
    git(root, "commit", "--quiet", "--only", "-m", message, "--", *files)
    return git(root, "rev-parse", "--short", "HEAD")


def _recorded(root: Path, target: Path) -> bool:
    """Whether the present params.yaml can be had again: it is a recipe, or git has it."""
    if current(root):
        return True
    done = subprocess.run(["git", "show", f"HEAD:./{target.name}"], cwd=root, capture_output=True)
    return done.returncode == 0 and done.stdout == target.read_bytes()
