"""A project with a registered candidate: made once, copied for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.conftest import api  # noqa: F401  (imported into a module it would last as long as the session)
from tests.project import Project, environment_for
from tests.registry import house


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which candidate 1 is trained and recorded, and MLflow's store is initialised (which takes seconds)."""
    from pipelines.adapters import recorder

    folder = tmp_path_factory.mktemp("house")
    project = house.build(folder / "project", environment_for(folder / "home"))
    recorder.connect(project.folder)
    return project


@pytest.fixture
def project(built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it; its artifacts, store and ledger are its own."""
    folder = house.copy(built.folder, tmp_path / "project")
    for name in ("MLFLOW_TRACKING_URI", "PREFLOOP_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    for variable in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(variable, built.environment[variable])
    monkeypatch.chdir(folder)
    return Project(folder, built.environment)
