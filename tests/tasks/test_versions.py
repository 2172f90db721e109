"""What DVC knows, read without changing anything: the plan, outputs changed by hand, damage in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import ConfigurationError, EnvironmentFault
from tasks import repository, versions
from tests.project import STAGES, Project, environment_for, make


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which every stage has run."""
    folder = tmp_path_factory.mktemp("finished")
    project = make(folder / "project", environment_for(folder / "home"))
    project.dvc("repro")
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project."""
    import shutil

    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project", finished.environment)


def actions(project: Project, *only: str, force: bool = False) -> dict[str, str]:
    return {planned.stage: planned.action for planned in versions.plan(project.folder, only, force).stages}


def test_the_graph_is_dvcs(project: Project) -> None:
    plan = versions.plan(project.folder)
    assert {planned.stage: planned.after for planned in plan.stages} == {
        "first": (),
        "side@left": ("first",),
        "side@right": ("first",),
        "report": ("side@left", "side@right"),
    }
    assert plan.idle


def test_what_changed_runs_and_what_follows_it(project: Project) -> None:
    project.set("^seed: 1", "seed: 2")
    plan = versions.plan(project.folder)
    assert [planned.action for planned in plan.stages] == ["run"] * 4
    assert plan.stages[0].why == "seed modified"
    assert plan.stages[1].why == "first would run"


def test_only_and_force(project: Project) -> None:
    assert actions(project, "side") == {"side@left": "unchanged", "side@right": "unchanged"}
    assert actions(project, "side@left", "first") == {"first": "unchanged", "side@left": "unchanged"}
    assert actions(project, "first", force=True) == {"first": "run"}
    with pytest.raises(ConfigurationError, match="--only sid: no such stage; stages: first, side@left"):
        versions.plan(project.folder, ("sid",))


def test_only_needs_what_the_stage_reads(project: Project) -> None:
    (project.folder / "artifacts/first.txt").unlink()
    said = "^--only side@left: it reads artifacts/first.txt, which is not there yet; name first too$"
    with pytest.raises(ConfigurationError, match=said):
        versions.plan(project.folder, ("side@left",))
    assert actions(project, "side@left", "first") == {"first": "restore", "side@left": "restore"}


def test_what_the_run_cache_has_is_restored_through_the_whole_chain(project: Project) -> None:
    (project.folder / "dvc.lock").unlink()
    assert set(actions(project).values()) == {"restore"}
    for path in sorted((project.folder / "artifacts").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert set(actions(project).values()) == {"restore"}
    project.dvc("repro")
    assert project.ran() == STAGES, "DVC says the same: nothing has run again"


def test_a_plan_changes_nothing(project: Project) -> None:
    def content() -> dict[str, bytes]:
        found = [path for path in project.folder.rglob("*") if path.is_file() and ".dvc/tmp" not in str(path)]
        return {str(path): path.read_bytes() for path in found}

    project.set("^seed: 1", "seed: 2")
    before = content()
    versions.plan(project.folder)
    assert content() == before


@pytest.mark.parametrize(
    ("path", "out"), [("artifacts/first.txt", "artifacts/first.txt"), ("artifacts/sides/left/more", "artifacts/sides/left")]
)
def test_an_output_changed_by_hand_is_refused_by_name(project: Project, path: str, out: str) -> None:
    project.write(path, "by hand")
    plan = versions.plan(project.folder)
    assert plan.foreign == (out,)
    with pytest.raises(EnvironmentFault, match=f"^{out}: changed by hand.*checkout --force {out}` restores.*--force"):
        versions.refuse_foreign(plan)
    project.dvc("checkout", "--force", out)
    assert versions.plan(project.folder).idle


def test_what_a_stage_left_is_not_taken_for_handwork(project: Project) -> None:
    project.write("artifacts/first.txt", "of an interrupted run")
    project.write(".runs/first/unfinished", "")
    assert versions.plan(project.folder).foreign == ()
    (project.folder / ".runs/first/unfinished").unlink()
    made = '{"outs": {"artifacts/first.txt": "d3fcae4d1f5b8fb3d2b2e7c3a5a0b9f8"}}'
    project.write(".runs/first/last.json", made)
    assert versions.plan(project.folder).foreign == ("artifacts/first.txt",)
    import hashlib

    project.write(
        ".runs/first/last.json",
        made.replace("d3fcae4d1f5b8fb3d2b2e7c3a5a0b9f8", hashlib.md5(b"of an interrupted run").hexdigest()),
    )
    assert versions.plan(project.folder).foreign == ()


def test_another_recipes_output_is_not_taken_for_handwork(project: Project) -> None:
    project.set("^seed: 1", "seed: 2")
    lock = project.read("dvc.lock")
    project.dvc("repro")
    project.write("dvc.lock", lock)  # as `git checkout dvc.lock` does
    assert versions.plan(project.folder).foreign == ()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: "", "required key"),
        (lambda text: text + "<<<<<<< HEAD\nschema: '2.0'\n", "merge conflict"),
        (lambda text: text + "  bad: [\n", "line "),
        (lambda text: "- a list\n", "expected a dictionary"),
    ],
)
def test_a_damaged_lock_is_one_line_and_how_to_mend_it(project: Project, damage, said: str) -> None:
    project.write("dvc.lock", damage(project.read("dvc.lock")))
    with pytest.raises(
        EnvironmentFault, match=f"^dvc.lock: damaged .*{said}.*; delete it: results come back from DVC's run cache$"
    ):
        versions.plan(project.folder)
    project.git("add", "--force", "dvc.lock")
    project.git("commit", "--quiet", "--message", "a lock")
    with pytest.raises(EnvironmentFault, match="git checkout dvc.lock"):
        versions.plan(project.folder)
    (project.folder / "dvc.lock").unlink()
    assert set(actions(project).values()) == {"restore"}, "following the advice helps"


def test_a_truncated_lock_that_parses_costs_no_run(project: Project) -> None:
    text = project.read("dvc.lock")
    for length in (150, 300, len(text) // 2):
        project.write("dvc.lock", text[:length])
        try:
            assert "run" not in actions(project).values(), length
        except EnvironmentFault:
            continue


@pytest.mark.parametrize(
    ("name", "pattern", "text", "said"),
    [
        ("dvc.yaml", "^stages:", "stages: [", "^dvc.yaml: not valid \\(line"),
        (
            "dvc.yaml",
            "    desc: x|    cmd: python stage.py first",
            "    colour: red\n    cmd: python stage.py first",
            "extra keys not allowed",
        ),
        ("dvc.yaml", "- src.txt", "- ${base.path}", "base.path"),
        ("params.yaml", "^seed: 1", "seed: [1", "params.yaml"),
    ],
)
def test_a_damaged_graph_is_an_error_of_the_configuration(
    project: Project, name: str, pattern: str, text: str, said: str
) -> None:
    project.set(pattern, text, name)
    with pytest.raises(ConfigurationError, match=said) as caught:
        versions.plan(project.folder)
    assert "\n" not in str(caught.value)


def test_a_missing_source_is_named_before_anything_runs(project: Project) -> None:
    (project.folder / "src.txt").unlink()
    with pytest.raises(ConfigurationError, match="^src.txt: no such file or folder; the stage first reads it"):
        versions.plan(project.folder)


def test_outside_a_project(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="not a prefloop project"):
        versions.plan(tmp_path)


def test_locks_of_killed_processes_do_not_stand_in_the_way(project: Project) -> None:
    import json
    import subprocess
    import sys

    dead = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{dead.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    holder = {"pid": dead.pid, "cmd": "dvc repro"}
    rwlock = project.folder / ".dvc/tmp/rwlock"
    path = str(project.folder / "artifacts/first.txt")
    rwlock.write_text(json.dumps({"write": {path: holder}, "read": {}}))
    project.set("^seed: 1", "seed: 2")
    assert actions(project)["first"] == "run"
    dead.wait()
    import os

    rwlock.write_text(json.dumps({"write": {path: {**holder, "pid": os.getppid()}}, "read": {}}))
    with pytest.raises(EnvironmentFault, match="DVC is at work in this folder"):
        versions.plan(project.folder)


def test_the_site_cache_is_private(project: Project) -> None:
    versions.plan(project.folder)
    assert (project.folder / ".dvc/tmp/site").stat().st_mode & 0o777 == 0o700


def test_what_dvc_versions_inside_a_dependency_is_data_and_has_to_be_there(project: Project) -> None:
    """`dvc add` leaves a note that DVC counts among its stages: it is none of the graph's, and its data is a source."""
    project.set("    - src.txt", "    - src.txt\n    - data/preferences", "dvc.yaml")
    project.write("data/preferences/README.md", "people\n")
    project.write("data/preferences/round-001.parquet", "rows\n")
    repository.track(project.folder, Path("data/preferences/round-001.parquet"), {"source": "a test"})
    assert project.read("data/preferences/round-001.parquet.dvc").endswith("meta:\n  source: a test\n")
    assert not (project.folder / "data/preferences/.gitignore").exists(), "the project's .gitignore has it already"
    plan = versions.plan(project.folder)
    assert [planned.stage for planned in plan.stages] == STAGES
    assert plan.names("run") == STAGES
    assert versions.sources(project.folder) == ["data/preferences", "src.txt"]

    (project.folder / "data/preferences/round-001.parquet").unlink()
    with pytest.raises(EnvironmentFault, match=r"data/preferences/round-001\.parquet: DVC versions it, .* the stage first reads"):
        versions.plan(project.folder)
    project.dvc("checkout", "--quiet", "data/preferences/round-001.parquet.dvc")
    assert project.read("data/preferences/round-001.parquet") == "rows\n"
    project.dvc("repro", "--quiet")
    assert versions.plan(project.folder).idle
