"""DVC's repository from Python and from child processes: locked while it is read, quiet, its errors in one line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigurationError, DataError, EnvironmentFault, PrefloopError


@contextmanager
def opened(root: Path) -> Iterator[Any]:
    """DVC's repository with its lock held; what DVC finds wrong is raised as a PrefloopError of one line."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    if not (root / ".dvc").is_dir():
        raise EnvironmentFault(f"{root}: not a prefloop project (no .dvc folder); change into its folder")
    os.environ.update(private(root))
    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # no bars and no warnings of its own on the terminal
    try:
        with chdir(root), Repo(str(root)) as repo, lock_repo(repo):  # DVC resolves some paths from the current folder
            _drop_locks_of_the_dead(Path(repo.tmp_dir) / "rwlock")
            yield repo
    except LockError as error:
        raise EnvironmentFault(
            "DVC is at work in this folder (another run, or a `dvc` command); wait for it or stop it"
        ) from error
    except DvcException as error:
        raise explained(error, root) from error


def environment(root: Path) -> dict[str, str]:
    """What a ``dvc repro`` inherits: this virtual environment's python first, a plain shell, our defaults, a private cache."""
    from pipelines.__main__ import DEFAULTS

    here = str(Path(sys.executable).parent)
    dropped = ("DVC_ROOT", "DVC_STAGE", "PYTHONSAFEPATH")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    path = os.pathsep.join([here, inherited.get("PATH", os.defpath)])
    return {**DEFAULTS, **inherited, **private(root), "PATH": path, "SHELL": "/bin/sh", "PYTHONUNBUFFERED": "1"}


def private(root: Path) -> dict[str, str]:
    """DVC's site cache inside the project, readable by its owner only: DVC unpickles what it finds there."""
    folder = root / ".dvc" / "tmp" / "site"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return {"DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(folder)}


def tool(name: str) -> str:
    """How a person calls a tool of this virtual environment: ``.venv/bin/dvc`` from the project's folder, else its name."""
    path = Path(sys.executable).with_name(name)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else name


def explained(error: Exception, root: Path) -> PrefloopError:
    """DVC's error in one line: which file, what is wrong, how to mend it."""
    from dvc.scm import SCMError
    from dvc.utils.strictyaml import YAMLSyntaxError, YAMLValidationError

    if isinstance(error, SCMError):
        return EnvironmentFault(f"{root}: not a git repository; clone the project with git, or `git init` here")
    if isinstance(error, YAMLSyntaxError | YAMLValidationError):
        name, detail = Path(str(error.args[0]).split("'")[1]).name, _cause(error)
        if name == "dvc.lock":
            committed = subprocess.run(["git", "cat-file", "-e", "HEAD:dvc.lock"], cwd=root, capture_output=True).returncode == 0
            mend = "`git checkout dvc.lock` restores the committed one, or delete it" if committed else "delete it"
            return EnvironmentFault(f"dvc.lock: damaged ({detail}); {mend}: results come back from DVC's run cache")
        return ConfigurationError(f"{name}: not valid ({detail})")
    return ConfigurationError(f"dvc: {_flat(str(error))}")


def git(root: Path, *arguments: str) -> str:
    """Run git; its complaint becomes an EnvironmentFault of one line."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise EnvironmentFault("git: not found; install it") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise EnvironmentFault(f"git {arguments[0]}: {said or f'ended with {done.returncode}'}")
    return done.stdout.strip()


def check_author(root: Path) -> None:
    """Refuse to begin what ends in a commit where git does not know its author, rather than fail after the training."""
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
    except EnvironmentFault as error:
        raise EnvironmentFault(
            f"{root}: what is made here is committed, and git does not know by whom: `git config user.name NAME` and"
            " `git config user.email ADDRESS`"
        ) from error


def track(root: Path, path: Path, facts: dict[str, str]) -> None:
    """``dvc add`` a file or folder of the project; ``facts`` stand in its note ``PATH.dvc``, which is what git commits.

    Raises EnvironmentFault with what DVC said.
    """
    from ruamel.yaml import YAML

    command = [sys.executable, "-m", "dvc", "add", "--quiet", str(path)]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentFault(f"dvc add {path}: {_flat(done.stderr)}")
    yaml, note = YAML(), root / f"{path}.dvc"
    content = yaml.load(note.read_text(encoding="utf-8"))
    content["meta"] = facts
    with note.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def fetch(root: Path, revision: str, path: str, to: Path) -> None:
    """The files of a folder that DVC holds, as they were at a git revision, from its cache or its remote into ``to``.

    Raises DataError where neither has them.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".fetch-") as place:
        try:
            with opened(root):  # its lock, its private cache, no bars
                pass
            Repo.get(str(root), path, out=str(Path(place) / "files"), rev=revision)
        except DvcException as error:
            raise DataError(f"DVC has no {path} at {revision} ({_flat(str(error))})") from error
        for file in sorted((Path(place) / "files").iterdir()):
            file.replace(to / file.name)


def share_cache(root: Path, worktree: Path) -> None:
    """Let a worktree use this project's DVC cache, linked rather than copied, and this machine's other DVC settings."""
    from dvc.repo import Repo

    local = root / ".dvc" / "config.local"
    if local.exists():
        shutil.copy2(local, worktree / ".dvc" / "config.local")
    with Repo(str(root)) as repo:
        cache = str(Path(repo.cache.local_cache_dir).resolve())
        remotes = {name: {"url": str(remote["url"])} for name, remote in repo.config["remote"].items() if "url" in remote}
    with Repo(str(worktree)) as repo, repo.config.edit("local") as settings:
        settings["cache"] = {"dir": cache, "type": ["reflink", "hardlink", "symlink", "copy"]}
        for name, remote in remotes.items():  # a remote's relative path counts from here, not from the worktree
            settings["remote"].setdefault(name, {}).update(remote)


def _drop_locks_of_the_dead(path: Path) -> None:
    """Remove DVC's table of busy paths when all that it names have ended (to DVC, an unreaped process lives)."""
    import psutil

    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    holders = [*table.get("write", {}).values(), *(reader for readers in table.get("read", {}).values() for reader in readers)]
    for pid in {int(holder["pid"]) for holder in holders}:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            continue
    if holders:
        path.unlink()


def _cause(error: Any) -> str:
    """What the YAML parser or DVC's schema says, in one line."""
    cause = error.exc.__cause__ if isinstance(error.exc.__cause__, Exception) else error.exc
    problem, mark = getattr(cause, "problem", None), getattr(cause, "problem_mark", None)
    if problem and mark:
        merge = ", merge conflict" if "<<<<<<<" in error.yaml_text else ""
        return f"line {mark.line + 1}: {problem}{merge}"
    return _flat(str(cause))


def _flat(text: str) -> str:
    return " ".join(text.split())
