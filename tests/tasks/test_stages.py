"""One stage through the real DVC: outcomes, faults, deaths; what Prefect adds is tested with the flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from pipelines.errors import ConfigurationError, DataError, EnvironmentFault, PrefloopError
from tasks.stages import Result, StageDied, Watcher, reproduce, watched
from tests.project import Project, environment_for, make


class Recording(Watcher):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def started(self, stage: str) -> None:
        self.told.append(("started", stage))

    def line(self, stage: str, text: str) -> None:
        self.told.append(("line", text))

    def ended(self, result: Result) -> None:
        self.told.append(("ended", result.outcome))

    def failed(self, stage: str, message: str) -> None:
        self.told.append(("failed", message))


@pytest.fixture
def watcher() -> Iterator[Recording]:
    recording = Recording()
    with disable_run_logger(), watched(recording):
        yield recording


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make(tmp_path / "project", environment_for(tmp_path / "home"))


def test_dvc_says_whether_it_ran_restored_or_left_alone(project: Project, watcher: Recording) -> None:
    def outcome(force: bool = False) -> str:
        return reproduce("first", project.folder, force).outcome

    assert outcome() == "ran"
    assert ("line", "first  1/2   50 %  1.00 step/s  0:01 left  loss 2.5") in watcher.told
    assert "first  done in 0.1 s  loss 2.5" in project.read(".runs/first/output.log")
    assert outcome() == "unchanged"
    (project.folder / "artifacts/first.txt").unlink()
    assert outcome() == "cached"
    project.set("^seed: 1", "seed: 2")
    assert outcome() == "ran"
    project.set("^seed: 2", "seed: 1")
    assert outcome() == "cached"
    assert project.ran() == ["first"] * 2
    project.write(".runs/first/key/checkpoints/step-7", "state")
    assert outcome(force=True) == "ran"
    assert not (project.folder / ".runs/first/key").exists(), "--force starts from nothing"


@pytest.mark.parametrize("fault", [DataError, ConfigurationError, EnvironmentFault])
def test_the_stages_own_error_comes_back_with_its_kind(project: Project, watcher: Recording, fault: type[PrefloopError]) -> None:
    project.tell("first", fail=fault.code)
    with pytest.raises(fault, match="^first: bad row 7; mend it$"):
        reproduce("first", project.folder, False)
    assert watcher.told[-1] == ("failed", "first: bad row 7; mend it")


def test_a_stale_error_is_not_believed(project: Project, watcher: Recording) -> None:
    project.write(".runs/first/error.json", '{"stage": "first", "code": 2, "message": "of yesterday"}')
    project.tell("first", die=1)
    with pytest.raises(StageDied, match=r"^first: .*\(its output: .runs/first/output.log\)$"):
        reproduce("first", project.folder, False)
    assert reproduce("first", project.folder, False).outcome == "ran"


def test_what_dvc_itself_refuses_is_no_death(project: Project, watcher: Recording) -> None:
    (project.folder / "src.txt").unlink()
    with pytest.raises(EnvironmentFault, match="^first: DVC: failed to reproduce 'first': .*src.txt"):
        reproduce("first", project.folder, False)
    assert project.ran() == []
