"""Git worktrees that share DVC's cache: where a run can happen without anything changing under a person's hands."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks import repository, versions
from tasks.repository import git

FOLDER = Path(".runs/worktrees")


def untracked_sources(root: Path) -> list[str]:
    """What the stages read that is neither in git nor written by a stage: a person's own data or model."""
    tracked = set(git(root, "ls-files").splitlines())
    return [
        path
        for path in versions.sources(root)
        if (root / path).exists() and not any(name == path or name.startswith(f"{path}/") for name in tracked)
    ]


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder over what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


@contextmanager
def temporary(root: Path, revision: str, name: str) -> Iterator[Path]:
    """A worktree of a revision with the shared cache and the sources that git does not hold; gone when the block ends."""
    git(root, "worktree", "prune")
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root / FOLDER))
    try:
        git(root, "worktree", "add", "--quiet", "--force", "--detach", str(folder), revision)
        repository.share_cache(root, folder)
        for relative in untracked_sources(root):
            copy(root / relative, folder / relative)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        git(root, "worktree", "prune")
