"""A version made again: identical, or the first stage that differs and why."""

from __future__ import annotations

import shutil

import pytest

from flows import reproduce
from tasks import registry
from tests.project import Project
from tests.registry import house


def test_identical_with_an_empty_cache(project: Project) -> None:
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    shutil.rmtree(project.folder / ".dvc/cache")
    before = project.git("status", "--porcelain")
    verdict = reproduce.reproduce(office, version)
    assert verdict.identical
    files = len(registry.manifest_of(office, version))
    assert (
        reproduce.told(version, verdict) == f"models:/prefloop/1: identical: {files} files of the model, the outputs of 5 stages"
    )
    assert not list((project.folder / ".runs/worktrees").iterdir())
    assert project.git("worktree", "list").count("\n") == 1
    assert project.git("status", "--porcelain") == before
    assert not (project.folder / ".dvc/cache/files").exists(), "nothing is written to the project's cache"


@pytest.mark.slow
def test_a_changed_parameter_is_named(project: Project) -> None:
    project.write("params.yaml", house.PARAMS)
    registry.register(registry.opened(project.folder), "ppo")
    project.write("other.yaml", house.PARAMS.replace("seed: 1", "seed: 2"))
    dvc = project.read("dvc.yaml").replace(
        "cp -r given/artifacts/reward/.",
        "grep seed params.yaml > x && mv x artifacts/reward/seed && cp -r given/artifacts/reward/.",
    )
    project.write("dvc.yaml", dvc)
    house.record(project, "a reward that depends on the seed")
    house.give(project, 2)
    house.record(project, "candidate 2")
    office = registry.opened(project.folder)
    version, _ = registry.register(office, "ppo")
    assert reproduce.reproduce(office, version).identical
    code, printed = project.prefloop("reproduce", "models:/prefloop/2", "--params", "other.yaml")
    assert code == 1, printed
    lines = printed.splitlines()
    at = lines.index("first stage that differs: reward")
    assert lines[at + 1] == "  parameter seed: 2 here, 1 there"
    assert "differs in 0 of" in printed


def test_changed_data_is_named(project: Project) -> None:
    version, _ = registry.register(registry.opened(project.folder), "ppo")
    house.give(project, 2)
    project.write("two.yaml", house.PARAMS.replace("threads: 1", "threads: 2"))
    office = registry.opened(project.folder)
    verdict = reproduce.reproduce(office, version, project.folder / "two.yaml")
    assert verdict.elsewhere == ["threads: 2 here, 1 there"]
    assert verdict.stage == "prepare"
    assert verdict.causes[0].startswith("data given/artifacts/prepared: ")
    assert verdict.files == ["model.safetensors"]
