"""A clean-up frees what nothing needs, and no version loses a byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import cleaning, registry
from tests.project import Project
from tests.registry import house


def objects(project: Project) -> set[Path]:
    return {path for path in (project.folder / ".dvc/cache/files/md5").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_versions_branches_and_recipes_keep_what_they_need(project: Project, tmp_path: Path) -> None:
    project.write("params.yaml", house.PARAMS + "registry:\n  copy_weights: false\n")
    project.write(".dvc/config", "[core]\n    analytics = false\n")  # no remote: the cache is all there is
    project.write("recipes/one.yaml", house.PARAMS)
    project.git("add", "recipes")
    project.git("commit", "--quiet", "--all", "--message", "no remote")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    weights = (project.folder / "artifacts/policies/ppo/model/model.safetensors").read_bytes()
    house.give(project, 2)
    project.dvc("repro", "--quiet")  # a run that nobody records
    house.give(project, 3)
    house.record(project, "candidate 3")
    before = objects(project)
    foreseen = cleaning.collect(project.folder, dry=True)
    assert objects(project) == before
    assert foreseen.recipes == ["one"]
    cleaning.collect(project.folder, dry=False)
    gone = before - objects(project)
    assert len(gone) == foreseen.objects > 0
    assert cleaning.collect(project.folder, dry=True).objects == 0
    assert (registry.pull(office, version, tmp_path / "here") / "model.safetensors").read_bytes() == weights
    assert (project.folder / "artifacts/policies/ppo/model/model.safetensors").exists()
    assert project.dvc("status").strip() == "Data and pipelines are up to date."
    assert project.git("worktree", "list").count("\n") == 1
