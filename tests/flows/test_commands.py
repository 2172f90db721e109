"""The command line as a person meets it: commands in processes of their own, no Prefect server unless a test says so."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.project import STAGES, Project


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "flows", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1.0
    for command in ("run", "status", "recipes", "use", "commit", "generate"):
        assert command in done.stdout
    heavy = "import sys, flows.__main__; print({'torch', 'prefect', 'dvc', 'mlflow', 'ray', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_when_nothing_is_to_do_nothing_is_started(offline: Project) -> None:
    offline.dvc("repro")
    offline.fresh_log()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, printed = offline.prefloop("run")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0, printed
    assert "everything is up to date" in printed
    assert "ppo" in printed
    assert ".runs/report/index.html" in printed
    assert after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime < 8, "seconds of CPU: a busy machine is no fault"
    assert offline.ran() == []
    assert not (offline.folder / ".prefect/prefect.db").exists()
    assert not (offline.folder / "mlflow.db").exists()
    assert "none: no stage ran" in offline.read(".runs/report/index.html")
    assert offline.prefloop("run", "--recipe", "one")[0] == 0, "params.yaml is that recipe already, and dvc.lock is not committed"


def test_status_and_dry_run_say_what_would_run_and_why(offline: Project) -> None:
    code, printed = offline.prefloop("status")
    assert code == 0, printed
    assert printed.splitlines()[0] == "params.yaml: recipe one"
    assert printed.splitlines()[1].split() == ["first", "would", "run", "not", "in", "dvc.lock"]

    offline.dvc("repro")
    offline.set("^seed: 1", "seed: 2")
    offline.fresh_log()
    facts = {"seconds": 62.0, "peak_rss_bytes": 3 * 2**30, "out_bytes": 5 * 2**20}
    offline.write(".runs/first/last.json", json.dumps(facts))
    offline.write(
        "benchmarks/results/seeds.json", json.dumps({"seeds": {"1": {"stages": {"report": {**facts, "seconds": 3.0}}}}})
    )
    code, printed = offline.prefloop("run", "--dry-run")
    assert code == 0, printed
    rows = {line.split()[0]: line for line in printed.splitlines() if line.split()}
    assert "1:02  3.0 GiB  5 MiB  last run here" in rows["first"]
    assert "seed modified" in rows["first"]
    assert "benchmark of the default recipe" in rows["report"]
    assert "not measured" in rows["side@left"]
    assert "4 stages would run: about 1:05 one after the other, 3.0 GiB of memory" in printed
    assert "2 not measured" in printed
    assert offline.ran() == []


def test_recipes_are_listed_used_and_edits_kept(offline: Project) -> None:
    code, printed = offline.prefloop("recipes")
    assert code == 0
    assert printed.splitlines() == ["*  one  a recipe for tests", "   two  a recipe for tests"]
    assert offline.prefloop("use", "two")[0] == 0
    assert offline.read("params.yaml") == offline.read("recipes/two.yaml")
    code, printed = offline.prefloop("use", "three")
    assert (code, printed) == (3, "error: recipes/three.yaml: no such recipe; recipes: one, two\n")

    offline.set("^seed: 2", "seed: 7")
    code, printed = offline.prefloop("run", "--recipe", "one")
    assert code == 3
    assert "prefloop use one --force" in printed
    assert "seed: 7" in offline.read("params.yaml")
    offline.git("commit", "--quiet", "--all", "--message", "mine")
    assert offline.prefloop("use", "one")[0] == 0, "git has the edits"
    offline.set("^seed: 1", "seed: 8")
    assert offline.prefloop("use", "two", "--force")[0] == 0


def test_commit_records_a_run_and_nothing_else(offline: Project) -> None:
    code, printed = offline.prefloop("commit")
    assert code == 3
    assert "not up to date" in printed
    offline.dvc("repro")
    offline.write("src.txt", "source\n")
    offline.write("notes.txt", "mine")
    offline.git("add", "notes.txt")
    code, printed = offline.prefloop("commit", "-m", "a run worth keeping")
    assert code == 0, printed
    assert offline.git("show", "--stat", "--format=%s", "HEAD").split("\n")[0] == "a run worth keeping"
    assert offline.git("diff", "--name-only", "HEAD~1", "HEAD").split() == ["dvc.lock"]
    assert "notes.txt" in offline.git("diff", "--cached", "--name-only")
    code, printed = offline.prefloop("commit")
    assert code == 3
    assert "nothing to record" in printed


@pytest.mark.parametrize(
    ("pattern", "text", "said"),
    [
        ("^evaluate: {}", "evaluate:\n  answer: 3", "evaluate.answer: unknown key; did you mean 'answers'?"),
        ("^    method: ppo", "    method: pppo", "did you mean 'ppo'"),
        ("^seed: 1", "seed: one", "seed"),
        ("^seed: 1", "seed: [", "not valid YAML"),
    ],
)
def test_a_mistake_in_the_parameters_is_said_before_anything_starts(offline: Project, pattern: str, text: str, said: str) -> None:
    offline.set(pattern, text)
    for command in ("run", "status"):
        code, printed = offline.prefloop(command)
        assert code == 3
        [line] = printed.splitlines()
        assert line.startswith("error: params.yaml: ")
        assert said in line
    assert not (offline.folder / ".prefect").exists()


def test_mistakes_on_the_command_line(offline: Project, tmp_path: Path) -> None:
    for arguments, said in (
        (["run", "--onyl", "first"], "unrecognized arguments"),
        (["run", "--only", "frist"], "--only frist: no such stage"),
        (["run", "--seeds", "one"], "invalid int value"),
        (["run", "--seeds", "1", "--dry-run"], "neither --only nor --dry-run"),
        (["fly"], "invalid choice"),
    ):
        code, printed = offline.prefloop(*arguments)
        assert code == 3, printed
        [line] = printed.splitlines()
        assert line.startswith("error: ")
        assert said in line
    elsewhere = Project(tmp_path, offline.environment)
    code, printed = elsewhere.prefloop("run")
    assert code == 4
    assert "not a prefloop project" in printed
    assert Project(offline.folder / "recipes", offline.environment).prefloop("status")[0] == 0, (
        "below the project's folder is fine"
    )


def test_damage_is_one_line_with_the_environments_code(offline: Project) -> None:
    offline.dvc("repro")
    offline.fresh_log()
    lock = offline.read("dvc.lock")
    offline.write("dvc.lock", "<<<<<<< HEAD\n" + lock)
    code, printed = offline.prefloop("run")
    assert code == 4
    [line] = printed.splitlines()
    assert line.startswith("error: dvc.lock: damaged")
    offline.write("dvc.lock", lock)

    offline.write("artifacts/sides/left/out.txt", "by hand")
    code, printed = offline.prefloop("run")
    assert code == 4
    [line] = printed.splitlines()
    assert line.startswith("error: artifacts/sides/left: changed by hand")
    assert "changed by hand: artifacts/sides/left" in offline.prefloop("status")[1]
    assert offline.read("artifacts/sides/left/out.txt") == "by hand"
    assert offline.ran() == []


def test_two_runs_in_one_folder_do_not_meet(offline: Project) -> None:
    path = offline.folder / ".runs/flow.lock"
    path.parent.mkdir()
    with path.open("w") as lock:
        lock.write(str(os.getpid()))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, printed = offline.prefloop("run")
    assert code == 4
    assert f"another `prefloop run` is at work in {offline.folder} (process {os.getpid()})" in printed


def test_generate_names_what_is_missing(offline: Project) -> None:
    code, printed = offline.prefloop("generate", "--policy", "ppo", "HAMLET: To be")
    assert (code, printed) == (2, "error: artifacts/policies/ppo/model: not there yet; `prefloop run` trains it\n")
    code, printed = offline.prefloop("generate", "--policy", "best", "HAMLET: To be")
    assert code == 3
    assert "there are: base, ppo, sft" in printed


@pytest.mark.slow
def test_seeds_run_in_worktrees_that_share_the_cache(project: Project) -> None:
    code, printed = project.prefloop("run", "--seeds", "1", "2")
    assert code == 0, printed
    result = json.loads(project.read(".runs/seeds.json"))
    assert set(result["seeds"]) == {"1", "2"}
    rates = [result["seeds"][seed]["report"]["policies"]["ppo"]["win_rate"] for seed in ("1", "2")]
    assert rates == [0.71, 0.72]
    assert result["summary"]["ppo"]["win_rate"]["mean"] == pytest.approx(0.715)
    assert result["summary"]["ppo"]["win_rate"]["spread"] == pytest.approx(0.01 / 2**0.5)
    rows = [line.split() for line in printed.splitlines() if line.startswith("ppo")]
    assert [row[1] for row in rows if row[1] in ("1", "2", "mean", "spread")] == ["1", "2", "mean", "spread"]
    assert "seed: 1" in project.read("params.yaml")
    assert not (project.folder / "dvc.lock").exists()
    worktree = project.folder / ".runs/worktrees/seed-2"
    assert [line.split()[0] for line in (worktree / "ran.log").read_text().splitlines() if "start" in line] == STAGES
    assert os.listdir(project.folder / ".dvc/cache/files"), "their results are in this folder's cache"

    # the results of seed 2 come back here from the shared run cache
    project.set("^seed: 1", "seed: 2")
    assert project.train() == dict.fromkeys(STAGES, "cached")


def test_seeds_refuse_code_that_is_not_committed(offline: Project) -> None:
    offline.write("src.txt", "another source\n")
    offline.write("pipelines/new.py", "code = 1\n")
    offline.write("notes.txt", "mine\n")
    offline.set("^seed: 1", "seed: 2")
    offline.dvc("repro")
    code, printed = offline.prefloop("run", "--seeds", "1")
    assert code == 4
    said = "--seeds runs what is committed, and src.txt, pipelines/new.py differs from it: commit first (params.yaml may differ)"
    assert printed.splitlines()[-1] == f"error: {said}"


def test_seeds_take_along_data_that_git_does_not_hold(offline: Project) -> None:
    from flows import seeds

    offline.set("- src.txt", "- data/mine.txt", "dvc.yaml")
    offline.git("commit", "--quiet", "--all", "--message", "my data")
    offline.write("data/mine.txt", "mine\n")
    offline.write(".gitignore", offline.read(".gitignore") + "/data/\n")
    seeds.refuse_uncommitted(offline.folder)
    worktree = seeds.prepare(offline.folder, 5)
    assert (worktree / "data/mine.txt").read_text() == "mine\n"
    assert "seed: 5" in (worktree / "params.yaml").read_text()
    (worktree / "stage.py").write_text("changed")
    assert seeds.prepare(offline.folder, 5) == worktree
    assert (worktree / "stage.py").read_text() == offline.read("stage.py"), "a worktree is renewed"


def test_a_prefect_server_that_is_not_there_is_named_at_once(offline: Project) -> None:
    started = time.monotonic()
    code, printed = offline.prefloop("run", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert code == 4
    assert "error: PREFECT_API_URL: http://127.0.0.1:9/api" in printed.splitlines()[-1]
    assert "Traceback" not in printed
    assert time.monotonic() - started < 30
    assert offline.ran() == []
