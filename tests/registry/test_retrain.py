"""The loop: new data is trained on and promoted, worse data keeps the champion, unchanged data does nothing."""

from __future__ import annotations

import subprocess
import time

import pytest

from pipelines.errors import EnvironmentFault
from tasks import registry, retraining
from tests.project import Project
from tests.registry import house


@pytest.fixture
def served(project: Project, api: str) -> Project:
    """The project, its commands on the session's Prefect server."""
    return Project(project.folder, {**project.environment, "PREFECT_API_URL": api})


@pytest.mark.slow
def test_new_data_is_promoted_worse_data_keeps_the_champion(served: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.retrain import retrain

    for name in ("MLFLOW_TRACKING_URI", "PREFLOOP_LEDGER"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    root = str(served.folder)
    head, status = served.git("rev-parse", "HEAD"), served.git("status", "--porcelain")

    # the first one: what was trained here already is restored and promoted
    result = retrain(root)
    assert (result["outcome"], result["champion"]) == ("promoted", "1")

    # nothing has changed
    started = time.process_time()
    result = retrain(root)
    assert (result["outcome"], result["why"], result["champion"]) == ("nothing to do", "inputs unchanged", "1")
    assert time.process_time() - started < 15

    # better data
    house.give(served, 2, 0.8)
    result = retrain(root, "new data")
    assert (result["outcome"], result["version"], result["champion"]) == ("promoted", "2", "2")
    tag = registry.opened(served.folder).registry.version("2").tags["git.tag"]
    assert "Retrain: new data" in served.git("log", "-1", "--format=%s", tag)

    # worse data
    house.give(served, 3, 0.05)
    result = retrain(root)
    assert (result["outcome"], result["version"], result["champion"]) == ("refused", "3", "2")
    assert retrain(root)["outcome"] == "nothing to do"

    assert (served.git("rev-parse", "HEAD"), served.git("status", "--porcelain")) == (head, status), "nothing changed underfoot"


def test_the_record_goes_to_the_branch_that_is_named(project: Project) -> None:
    office = registry.opened(project.folder)
    worktree = retraining.prepare(project.folder)
    project.git("init", "--quiet", "--bare", str(project.folder.parent / "remote.git"))
    project.git("remote", "add", "origin", str(project.folder.parent / "remote.git"))
    named = {"retrain": {"branch": "models"}, "registry": {"git_remote": "origin"}}
    params = office.params.model_copy(
        update={section: getattr(office.params, section).model_copy(update=values) for section, values in named.items()}
    )
    (worktree / "params.yaml").write_text(house.PARAMS + "# newer\n")
    commit = retraining.record(worktree, params, "a test")
    assert project.git("rev-parse", "models").strip() == commit
    assert project.git("ls-remote", "origin", "refs/heads/models").split()[0] == commit
    assert project.git("show", "models:params.yaml").endswith("# newer\n")
    assert subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "params.yaml"], cwd=project.folder).returncode == 0

    worktree = retraining.prepare(project.folder)
    (worktree / "params.yaml").write_text(house.PARAMS + "# newest\n")
    newer = retraining.record(worktree, params, "another test")
    assert project.git("rev-list", "--first-parent", "models").split()[:2] == [newer, commit], "the branch grows"
    assert project.git("rev-parse", f"{newer}^2^").strip() == project.git("rev-parse", "HEAD").strip(), "on the present code"
    assert project.git("ls-remote", "origin", "refs/heads/models").split()[0] == newer
    assert project.git("show", "models:params.yaml").endswith("# newest\n")


def test_ticks_that_were_slept_over_are_caught_up_once(project: Project) -> None:
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    assert retraining.caught_up(project.folder, now - timedelta(hours=3)) == "", "nothing ran yet"
    retraining.started(project.folder)
    due = [retraining.caught_up(project.folder, now - timedelta(hours=hours)) for hours in (3, 2, 1)]
    assert all(why.startswith("the run that started at ") for why in due)
    assert retraining.caught_up(project.folder, datetime.now(UTC) + timedelta(seconds=1)) == "", "the next tick counts"
    assert retraining.caught_up(project.folder, None) == "", "by hand: always"


def test_nothing_is_trained_that_git_could_not_commit(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.git("config", "user.useConfigOnly", "true")
    for variable in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(project.folder.parent))
    with pytest.raises(EnvironmentFault, match="git does not know by whom: `git config user.name NAME`"):
        retraining.prepare(project.folder)
    assert not (project.folder / retraining.WORKTREE).exists()
    project.git("config", "user.name", "t")
    project.git("config", "user.email", "t@example.org")
    assert (retraining.prepare(project.folder) / "params.yaml").exists()
