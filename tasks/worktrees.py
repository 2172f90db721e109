"""Git worktrees that share DVC's cache: where a run can happen without anything changing under a person's hands."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import EnvironmentFault
from tasks import processes, repository, versions
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


def renew(source: Path, target: Path) -> None:
    """Make a file or folder what the source is, nothing left of what it was."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    copy(source, target)


def pull_inputs(folder: Path) -> None:
    """What `dvc add` tracks: from the shared cache, else from the remote. Raises EnvironmentFault where neither has it."""
    tracked = [name for name in git(folder, "ls-files", "*.dvc").splitlines() if not name.startswith(".dvc/")]
    for arguments in (["checkout", *tracked], ["pull", *tracked]) if tracked else []:
        if run_dvc(folder, arguments, quiet=True) == 0:
            return
    if tracked:
        raise EnvironmentFault(f"{', '.join(tracked)}: neither DVC's cache nor its remote has the data; ask whoever pushed it")


def run_dvc(folder: Path, arguments: list[str], quiet: bool = False) -> int:
    """DVC in a worktree, with a tracking store of the worktree's own; it dies with us. Returns its exit code."""
    environment = {key: value for key, value in repository.environment(folder).items() if key != "MLFLOW_TRACKING_URI"}
    output = subprocess.DEVNULL if quiet else None
    with subprocess.Popen(
        processes.command("dvc", arguments), cwd=folder, env=environment, stdout=output, stderr=output
    ) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise


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
