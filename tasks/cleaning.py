"""``prefloop gc``: free what no version, branch or recipe needs in DVC's cache."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pipelines import config
from pipelines.errors import PrefloopError
from tasks import repository, versions, worktrees


@dataclass(frozen=True)
class Freed:
    """Objects and bytes of DVC's cache that nothing needs; ``recipes``: those whose results were found and kept."""

    objects: int
    size: int
    recipes: list[str]


def collect(root: Path, dry: bool) -> Freed:
    """Remove from DVC's cache what is used by no tag (so by no version), branch, worktree or recipe; ``dry`` removes nothing.

    A recipe's results are those that the run cache gives for HEAD's code. DVC's remote is not touched.
    """
    with ExitStack() as stack:
        folders, kept = [], []
        for path in sorted((root / "recipes").glob("*.yaml")):
            folder = stack.enter_context(worktrees.temporary(root, "HEAD", "gc"))
            shutil.copy2(path, folder / config.PARAMS)
            if _restored(folder):
                folders.append(str(folder))
                kept.append(path.stem)
        folders += [str(one) for one in _other_worktrees(root, folders)]
        objects, size = _unused(root, folders)
        if not dry:
            with repository.opened(root) as repo:
                repo.gc(workspace=True, all_branches=True, all_tags=True, repos=folders, force=True)
        return Freed(objects, size, kept)


def _restored(folder: Path) -> bool:
    """Write the recipe's dvc.lock from the run cache, as far as it goes; whether it knows anything of this recipe."""
    try:
        worktrees.pull_inputs(folder)
        stages = [planned.stage for planned in versions.plan(folder).stages if planned.action == "restore"]
    except PrefloopError:  # a recipe whose data is not here has no results here either
        return False
    done = [stage for stage in stages if worktrees.run_dvc(folder, ["repro", "--single-item", stage], quiet=True) == 0]
    return bool(done)


def _other_worktrees(root: Path, known: list[str]) -> list[Path]:
    """The project's other worktrees (seeds, retraining): what lies there in use is needed."""
    lines = repository.git(root, "worktree", "list", "--porcelain").splitlines()
    places = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    return [
        place for place in places if place.resolve() != root.resolve() and str(place) not in known and (place / ".dvc").is_dir()
    ]


def _unused(root: Path, folders: list[str]) -> tuple[int, int]:
    """Objects in the cache that nobody uses, counted as DVC's own clean-up does."""
    from dvc.repo import Repo

    used: set[str] = set()
    with repository.opened(root) as repo:
        for place in [*folders, ""]:
            with Repo(place) if place else nullcontext(repo) as one:
                for ids in one.used_objs(all_branches=True, all_tags=True).values():
                    used |= {str(found.value) for found in ids}
        odb = repo.cache.local
        unused = [odb.oid_to_path(oid) for oid in odb.all() if oid not in used]
        return len(unused), sum(Path(path).stat().st_size for path in unused)
