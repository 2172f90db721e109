"""One Prefect server for all tests here: the in-process flows and the command lines of the tests use it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import Project, environment_for, make


@pytest.fixture(scope="package")
def api() -> Iterator[str]:
    """The address of a Prefect API with a database of its own, which this process uses until the last test of the package."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    with prefect_test_harness(server_startup_timeout=180):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store that all projects share: initialising a fresh SQLite file takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def project(tmp_path: Path, api: str, store: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose commands use the session's Prefect server and MLflow store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)  # for the flows in this process
    return make(tmp_path / "project", environment_for(tmp_path / "home", PREFECT_API_URL=api, MLFLOW_TRACKING_URI=store))


@pytest.fixture
def offline(tmp_path: Path) -> Project:
    """A project without a Prefect server: what needs one would have to start its own."""
    return make(tmp_path / "offline", environment_for(tmp_path / "home"))
