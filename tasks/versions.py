"""What DVC knows: the graph, what is up to date, what would run and why.

dvc.yaml owns the graph; nothing here lists a stage or an edge.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import ConfigurationError, EnvironmentFault
from tasks import repository

Action = Literal["unchanged", "restore", "run"]


@dataclass(frozen=True)
class Planned:
    """What a run would do with one stage, and why; ``after`` names the stages that it waits for."""

    stage: str
    action: Action
    why: str
    after: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All stages in an order in which they can run; ``foreign``: outputs that neither a stage nor DVC knows."""

    stages: tuple[Planned, ...]
    foreign: tuple[str, ...]

    @property
    def idle(self) -> bool:
        """Nothing to run, nothing to restore."""
        return all(planned.action == "unchanged" for planned in self.stages)

    def names(self, action: Action) -> list[str]:
        """The stages with this action."""
        return [planned.stage for planned in self.stages if planned.action == action]


def plan(root: Path, only: tuple[str, ...] = (), force: bool = False) -> Plan:
    """Compare the workspace with dvc.lock and the run cache: one pass, a second or less, changes nothing.

    ``only`` names stages (``policy`` stands for every ``policy@...``); the others are left out. Raises ConfigurationError
    for an unknown stage or a missing source, EnvironmentFault for a damaged dvc.lock.
    """
    with repository.opened(root) as repo:
        nodes = _ordered(repo)
        absent = _absent(repo)
        chosen = _chosen(only, [stage.name for stage, _ in nodes])
        actions: dict[str, Action] = {}
        outs: dict[str, Any] = {}
        planned, foreign = [], []
        for stage, after in nodes:
            if only and stage.name not in chosen:
                continue
            known = tuple(name for name in after if name in actions)
            _sources_exist(stage, repo, set(after) - chosen if only else set(), absent)
            action, why = _judged(stage, known, actions, outs)
            if force:
                action, why = "run", "forced"
            actions[stage.name] = action
            planned.append(Planned(stage.name, action, why, known))
            foreign += _foreign(stage, root)
    return Plan(tuple(planned), tuple(foreign))


def refuse_foreign(plan: Plan) -> None:
    """Raise EnvironmentFault when an output was changed by hand: a run would overwrite it."""
    if plan.foreign:
        paths = ", ".join(plan.foreign)
        raise EnvironmentFault(
            f"{paths}: changed by hand (the content is neither in dvc.lock nor in DVC's cache), and a run would overwrite it; "
            f"`{repository.tool('dvc')} checkout --force {' '.join(plan.foreign)}` restores the result, "
            "`prefloop run --force` runs every stage again"
        )


def outs(root: Path, stage: str) -> dict[str, str]:
    """A stage's outputs and their hashes (path -> md5) as dvc.lock has them; empty when it has none."""
    with repository.opened(root) as repo:
        return {
            str(out.def_path): str(out.hash_info.value)
            for found in repo.stage.collect(stage)
            for out in found.outs
            if out.hash_info
        }


def sources(root: Path) -> list[str]:
    """The files and folders that stages read and no stage writes."""
    files = ("md5", "md5-dos2unix")  # the second one until dvc.lock has it
    with repository.opened(root) as repo:
        deps = {dep.def_path: dep for stage in _stages(repo) for dep in stage.deps if dep.hash_name in files}
        return sorted(str(path) for path, dep in deps.items() if not _made_by_a_stage(dep, repo))


def order_lock(root: Path) -> None:
    """Put dvc.lock's entries in the order of the graph, as `dvc repro` alone leaves them: stages side by side end in any."""
    from dvc.utils.serialize import modify_yaml

    with repository.opened(root) as repo:
        names = [stage.name for stage, _ in _ordered(repo)]
        with modify_yaml(str(root / "dvc.lock")) as lock:
            for name in names:
                if name in lock["stages"]:
                    lock["stages"].move_to_end(name)


def _stages(repo: Any) -> list[Any]:
    """What dvc.yaml names: a note that `dvc add` has left beside data is a stage to DVC as well, without a name."""
    return [stage for stage in repo.index.stages if getattr(stage, "name", None)]


def _absent(repo: Any) -> dict[str, str]:
    """What `dvc add` versions and is not in place: absolute path -> path from the project's folder."""
    notes = [out for stage in repo.index.stages if not getattr(stage, "name", None) for out in stage.outs]
    return {out.fs_path: os.path.relpath(out.fs_path, repo.root_dir) for out in notes if not out.exists}


def _ordered(repo: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """The stages with the names of what they wait for, in an order in which they can run: as in dvc.yaml where it allows."""
    graph, stages = repo.index.graph, _stages(repo)
    waiting = [(stage, {before.name for before in graph.successors(stage) if before in stages}) for stage in stages]
    ordered: list[tuple[Any, tuple[str, ...]]] = []
    done: set[str] = set()
    while waiting:
        ready = next(entry for entry in waiting if entry[1] <= done)
        waiting.remove(ready)
        done.add(ready[0].name)
        ordered.append((ready[0], tuple(name for name in (stage.name for stage, _ in ordered) if name in ready[1])))
    return ordered


def _chosen(only: tuple[str, ...], names: list[str]) -> set[str]:
    chosen: set[str] = set()
    for word in only:
        found = {name for name in names if word in (name, name.partition("@")[0])}
        if not found:
            raise ConfigurationError(f"--only {word}: no such stage; stages: {', '.join(names)}")
        chosen |= found
    return chosen


def _sources_exist(stage: Any, repo: Any, left_out: set[str], absent: dict[str, str]) -> None:
    """A missing file that no stage of this run writes would stop DVC in the middle: say so before anything starts.

    One that `dvc add` versions inside a folder would not even stop it: the folder would be read without it.
    """
    for dep in stage.deps:
        for path, shown in absent.items():
            if path == dep.fs_path or _inside(path, dep.fs_path):
                raise EnvironmentFault(
                    f"{shown}: DVC versions it, and it is not here; the stage {stage.name} reads it: "
                    f"`{repository.tool('dvc')} pull {shown}` brings it"
                )
        if dep.exists:
            continue
        if not _made_by_a_stage(dep, repo):
            raise ConfigurationError(
                f"{dep.def_path}: no such file or folder; the stage {stage.name} reads it: "
                "put it there, or correct its path in params.yaml"
            )
        if left_out:
            raise ConfigurationError(
                f"--only {stage.name}: it reads {dep.def_path}, which is not there yet; name {', '.join(sorted(left_out))} too"
            )


def _made_by_a_stage(dep: Any, repo: Any) -> bool:
    paths = (out.fs_path for stage in _stages(repo) for out in stage.outs)
    return any(path == dep.fs_path or _inside(path, dep.fs_path) or _inside(dep.fs_path, path) for path in paths)


def _judged(stage: Any, after: tuple[str, ...], actions: dict[str, Action], outs: dict[str, Any]) -> tuple[Action, str]:
    """The action for a stage once those before it are judged; ``outs`` collects the hashes that restored outputs will have."""
    renewed = [name for name in after if actions[name] == "run"]
    if renewed:
        return "run", f"{', '.join(renewed)} would run"
    why = _why(stage)
    restored = any(actions[name] == "restore" for name in after)
    if not why and not restored:
        return "unchanged", "up to date"
    entry = _remembered(stage, outs)
    if entry is not None:
        outs.update({out.fs_path: out for out in entry.outs})
        return "restore", f"{why or 'follows what is restored'}; DVC's run cache has the result"
    if restored and any(_merged(dep, outs) for dep in stage.deps):
        return "restore", "follows what is restored"
    return "run", why or "follows what is restored"


def _why(stage: Any) -> str:
    """What differs from dvc.lock, in a few words; empty when nothing does."""
    reasons = []
    for entry in stage.status().get(stage.addressing, []):
        if isinstance(entry, str):
            reasons.append(entry)
            continue
        for kind, changes in entry.items():
            what = {"changed outs": "output", "changed deps": "", "changed checksum": "checksum"}.get(kind, kind)
            for path, change in changes.items() if isinstance(changes, dict) else [(str(changes), "changed")]:
                keys = [f"{key} {state}" for key, state in change.items()] if isinstance(change, dict) else [f"{path} {change}"]
                reasons += [f"{what} {key}".strip() for key in keys]
    reasons = [reason for reason in reasons if reason != "changed command" or len(reasons) == 1]
    if any(reason == "params.yaml new" or reason.endswith(" new") for reason in reasons) and not any(
        o.hash_info for o in stage.outs
    ):
        return "not in dvc.lock"
    shown = ", ".join(reasons[:3])
    return shown + (f" and {len(reasons) - 3} more" if len(reasons) > 3 else "")


def _remembered(stage: Any, outs: dict[str, Any]) -> Any | None:
    """The run cache's entry for this stage, whose outputs are in the cache; None when there is none."""
    from dvc.stage.cache import _get_cache_hash  # DVC has no public look-up for outputs that are not in place yet
    from dvc.stage.serialize import to_single_stage_lockfile

    if not (stage.cmd and stage.deps and stage.outs) or any(_merged(dep, outs) for dep in stage.deps):
        return None
    stage.save_deps(allow_missing=True)
    for dep in stage.deps:
        if dep.fs_path in outs:
            dep.hash_info, dep.meta = outs[dep.fs_path].hash_info, outs[dep.fs_path].meta
        elif not dep.exists:
            return None
    cache = stage.repo.stage_cache
    key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
    folder = Path(cache._get_cache_dir(key))
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    entry = cache._load_cache(key, entries[-1].name) if entries else None
    found = cache._create_stage(entry, wdir=stage.wdir) if entry else None
    return found if found and found.outs_cached() else None


def _merged(dep: Any, outs: dict[str, Any]) -> bool:
    """Whether a dependency holds, or lies in, an output that is going to be restored."""
    return any(_inside(path, dep.fs_path) or _inside(dep.fs_path, path) for path in outs)


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _foreign(stage: Any, root: Path) -> list[str]:
    """Outputs whose content differs from dvc.lock and which neither DVC's cache nor the stage's last run knows."""
    made = _made(root / ".runs" / stage.name)
    if made is None:
        return []
    found = []
    for out in stage.outs:
        if not (out.use_cache and out.hash_info and out.exists and out.changed_checksum()):
            continue
        present = out.get_hash()
        if not out.cache.exists(present.value) and made.get(out.def_path) != present.value:
            found.append(str(out.def_path))
    return found


def _made(folder: Path) -> dict[str, str] | None:
    """The hashes that the stage's last run left in place; None when a run was interrupted, so that remains are to be expected."""
    if (folder / "unfinished").exists():
        return None
    try:
        return dict(json.loads((folder / "last.json").read_text(encoding="utf-8")).get("outs", {}))
    except (OSError, ValueError):
        return {}
