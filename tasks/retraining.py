"""What a scheduled retraining needs: a worktree of its own with the newest data, whether there is anything to do, a record."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from pipelines import config
from pipelines.errors import ConfigurationError, EnvironmentFault
from tasks import card, registry, repository, versions, worktrees
from tasks.registry import Office
from tasks.repository import git

WORKTREE = worktrees.FOLDER / "retrain"
LAST = Path(".runs/retrain.json")
CODE = ("pipelines", "constraints.txt")


def prepare(root: Path, worktree: Path = WORKTREE) -> Path:
    """The worktree: HEAD's code, the present parameters and data of this folder, the results of the last time.

    A person's own work in the folder is not touched, and what is edited there meanwhile does not change the run.
    Raises EnvironmentFault where git could not commit in it.
    """
    repository.check_author(root)
    folder = root / worktree
    lock = folder / "dvc.lock" if (folder / "dvc.lock").exists() else root / "dvc.lock"
    known = lock.read_bytes() if lock.exists() else None
    git(root, "worktree", "prune")
    if (folder / ".git").exists():
        git(folder, "checkout", "--quiet", "--force", "--detach", git(root, "rev-parse", "HEAD"))
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(root, "worktree", "add", "--quiet", "--force", "--detach", str(folder), "HEAD")
    worktrees.copy(root / config.PARAMS, folder / config.PARAMS)
    for relative in data(root):
        worktrees.renew(root / relative, folder / relative)
    if known is not None:
        (folder / "dvc.lock").write_bytes(known)
    repository.share_cache(root, folder)
    worktrees.pull_inputs(folder)
    return folder


def data(root: Path) -> list[str]:
    """What the stages read that is no code: the sources, and the notes in which `dvc add` keeps their hashes."""
    read = [path for path in versions.sources(root) if not path.startswith(CODE) and (root / path).exists()]
    return read + [f"{path}.dvc" for path in read if (root / f"{path}.dvc").exists()]


def idle(folder: Path, office: Office, policy: str) -> bool:
    """Whether nothing has changed since a version was registered: no stage would run, and its model is a version already."""
    plan = versions.plan(folder)
    model = folder / "artifacts" / "policies" / policy / "model"
    if not plan.idle or not (model / "config.json").exists():
        return False
    return office.registry.with_content(card.content_of(card.manifest(model))) is not None


def policy_of(office: Office) -> str:
    """Which policy is retrained: params.yaml's retrain.policy, the champion's, or the only one."""
    named, known = office.params.retrain.policy, list(office.params.policies)
    champion = office.standing().champion
    if not named and champion:
        named = office.registry.version(champion).tags.get("prefloop.policy", "")
    if not named and len(known) == 1:
        named = known[0]
    if named not in known:
        raise ConfigurationError(
            f"retrain.policy: {named or 'not set'}; name one of the policies of params.yaml: {', '.join(known)}"
        )
    return named


def record(folder: Path, params: config.Params, reason: str) -> str:
    """Commit parameters, data and dvc.lock in the worktree, on retrain.branch where one is named; return the commit.

    The branch only grows: what stands on it already is the first parent.
    """
    message = f"Retrain: {reason}"
    made = committed(folder, message)
    branch, remote = params.retrain.branch, params.registry.git_remote
    if branch:
        tip = git(folder, "for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")
        if tip and git(folder, "merge-base", tip, made) != tip:
            made = git(folder, "commit-tree", f"{made}^{{tree}}", "-p", tip, "-p", made, "-m", message)
            git(folder, "checkout", "--quiet", "--detach", made)
        git(folder, "update-ref", f"refs/heads/{branch}", made)
        if remote and params.retrain.push:
            git(folder, "push", "--quiet", remote, f"refs/heads/{branch}")
    return made


def committed(folder: Path, message: str, *more: str) -> str:
    """Commit parameters, data, dvc.lock and ``more`` in a worktree, where they have changed; return HEAD's commit."""
    kept = [path for path in ("params.yaml", "dvc.lock", *data(folder), *more) if not _ignored(folder, path)]
    git(folder, "add", "--all", "--", *kept)
    if git(folder, "diff", "--cached", "--name-only"):
        git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def caught_up(root: Path, due: datetime | None) -> str:
    """Why a run that was due at ``due`` has nothing left to do: a later one has started since; "" where it has."""
    try:
        last = datetime.fromisoformat(json.loads((root / LAST).read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, KeyError):
        return ""
    return f"the run that started at {last:%Y-%m-%d %H:%M:%S} UTC has done it" if due is not None and due < last else ""


def started(root: Path) -> None:
    """Remember that a retraining has begun: ticks that were due before need none of their own."""
    path = root / LAST
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"started": datetime.now(UTC).isoformat()}), encoding="utf-8")
    fresh.replace(path)


def in_worktree(root: Path, folder: Path) -> Office:
    """The registry and ledger of the project, seen from the worktree."""
    params = config.load(folder / config.PARAMS)
    known = registry.opened(root)
    if params.registry.name != known.name:
        raise EnvironmentFault(
            f"registry.name changed while retraining: {known.name} before, {params.registry.name} now; run again"
        )
    return Office(folder, params, known.registry, known.ledger)


def _ignored(folder: Path, path: str) -> bool:
    return subprocess.run(["git", "check-ignore", "--quiet", path], cwd=folder).returncode == 0
