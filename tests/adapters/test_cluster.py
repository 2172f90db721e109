"""The cluster: local mode, and one real Ray cluster of two workers with one thread each for the whole file."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipelines.adapters import cluster
from pipelines.config import RayRuntime, Runtime
from pipelines.context import Cluster
from pipelines.errors import DataError, EnvironmentFault
from tests.adapters import functions
from tests.adapters.functions import Job

ROOT = Path(__file__).parents[2]
TWO = Runtime(workers=2, threads=2)
ALONE = Runtime(workers=0, threads=1)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One cluster for the file, as a flow has one for its stages."""
    with cluster.start_local(TWO) as started:
        yield started


@pytest.fixture
def two(address: str, tmp_path: Path) -> Iterator[Cluster]:
    with cluster.connect(TWO, tmp_path / "journal.jsonl") as rays:
        yield rays


@contextmanager
def local(tmp_path: Path) -> Iterator[Cluster]:
    with cluster.connect(ALONE, tmp_path / "journal.jsonl") as rays:
        yield rays


def exact(steps: int) -> float:
    """w after `steps` of w <- w - 0.01 / 8 * sum(x^2) (w - 2) from 0, sum(1^2..8^2) = 204: 2 (1 - (1 - 0.255)^steps)."""
    return 2.0 * (1.0 - (1.0 - 0.255) ** steps)


def placements(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "placements.jsonl").read_text().splitlines()]


def test_local_mode_trains_in_this_process_without_a_runtime(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from pipelines.adapters import cluster; from pipelines.config import Runtime;"
        "from tests.adapters import functions as f; out = pathlib.Path(sys.argv[1])\n"
        "with cluster.connect(Runtime(workers=0, threads=1), out / 'journal.jsonl') as rays:\n"
        "    rays.train(f.regression, f.Job(out), out)\n"
        "import ray; assert not ray.is_initialized(); assert rays.workers == 0"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert float(torch.load(tmp_path / "w.pt")) == pytest.approx(exact(4), abs=1e-5)
    (line,) = placements(tmp_path)
    assert (line["call"], line["node"], line["actor"]) == ("train", "", "")
    assert line["function"] == "tests.adapters.functions.regression"


def test_local_errors_pass_as_they_are(tmp_path: Path) -> None:
    with local(tmp_path) as rays, pytest.raises(DataError, match=r"rows.jsonl:3"):
        rays.train(functions.regression, Job(tmp_path, fail_rank=0), tmp_path)


def test_two_workers_step_like_one_process(two: Cluster, tmp_path: Path) -> None:
    two.train(functions.regression, Job(tmp_path), tmp_path)
    assert float(torch.load(tmp_path / "w.pt")) == pytest.approx(exact(4), abs=1e-5)
    lines = placements(tmp_path)
    assert [line["rank"] for line in sorted(lines, key=lambda line: line["rank"])] == [0, 1]
    assert len({line["pid"] for line in lines}) == len({line["actor"] for line in lines}) == 2
    assert all(line["node"] for line in lines)
    assert os.getpid() not in {line["pid"] for line in lines}
    logged = [json.loads(line)["step"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4]  # rank 0 alone writes


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_training_goes_on(two: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    two.train(functions.regression, Job(tmp_path, steps=6, kill_rank=1, kill_step=3), tmp_path)
    assert (tmp_path / "killed").exists()  # the fault did fire
    assert "warning: a worker died" in capfd.readouterr().err
    assert float(torch.load(tmp_path / "w.pt")) == pytest.approx(exact(6), abs=1e-5)
    logged = [json.loads(line)["step"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert logged[-1] == 6
    assert logged.count(1) == 1  # not from the start again
    assert len({line["pid"] for line in placements(tmp_path)}) == 4


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_place_that_a_dead_group_has_kept_is_given_back(two: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train forgets the place of a group of which a worker dies while it starts: here one is left behind for certain."""
    import ray
    from ray.util import placement_group

    fit, tries = two._fit, []

    def dies_first(config: dict, scratch: Path) -> str | None:
        tries.append(scratch)
        if len(tries) > 1:
            return fit(config, scratch)
        ray.get(placement_group([{"CPU": 1}] * 2).ready())
        return "while it started"

    monkeypatch.setattr(two, "_fit", dies_first)
    two.train(functions.regression, Job(tmp_path, steps=2), tmp_path)
    assert float(torch.load(tmp_path / "w.pt")) == pytest.approx(exact(2), abs=1e-5)


@pytest.mark.slow
def test_a_persons_mistake_crosses_once_with_its_code(two: Cluster, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^rows.jsonl:3 \[prompt\] empty") as caught:
        two.train(functions.regression, Job(tmp_path, fail_rank=1), tmp_path)
    assert caught.value.code == 2
    assert len(placements(tmp_path)) == 2  # one group, no retry


@pytest.mark.slow
def test_a_defect_is_not_tried_again(two: Cluster, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a defect"):
        two.train(functions.defect, Job(tmp_path), tmp_path)
    assert len((tmp_path / "calls").read_text()) <= 2


def test_map_keeps_the_order_and_does_not_depend_on_shards(two: Cluster, tmp_path: Path) -> None:
    for count in (0, 1, 2, 7):
        expected = [item * item + 5 for item in range(count)]
        assert two.map(functions.squares, 5, range(count)) == expected
        with local(tmp_path) as alone:
            assert alone.map(functions.squares, 5, range(count)) == expected


def test_map_gives_neighbours_to_actors_that_stay(two: Cluster, tmp_path: Path) -> None:
    first = two.map(functions.where, None, list(range(5)))
    assert [rank for _, rank, _, _ in first] == [0, 0, 1, 1, 1]
    assert {folder for *_, folder in first} == {os.getcwd()}
    assert two.map(functions.where, None, list(range(5))) == first  # the same processes
    assert {line["pid"] for line in placements(tmp_path)} == {pid for _, _, pid, _ in first}
    assert len({line["actor"] for line in placements(tmp_path)}) == 2


def test_map_survives_a_killed_actor_and_passes_errors(two: Cluster, tmp_path: Path) -> None:
    assert two.map(functions.dies_once, tmp_path, list(range(6))) == list(range(6))
    assert (tmp_path / "mapped").exists()
    with pytest.raises(DataError, match=r"^prompts.parquet: 0 rows left$"):
        two.map(functions.refuses, None, [1, 2, 3])


def test_more_workers_than_the_cluster_has_room_for(address: str, tmp_path: Path) -> None:
    runtime = Runtime(workers=3, threads=3, ray=RayRuntime(address=address))
    with pytest.raises(EnvironmentFault, match="room for 2 workers of 1 CPU, runtime.workers is 3"):  # noqa: SIM117
        with cluster.connect(runtime, tmp_path / "journal.jsonl"):
            pass


def test_the_token_is_private(address: str) -> None:
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert stat.S_IMODE(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode) == 0o600


@pytest.mark.slow
def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from pipelines.adapters import cluster; from pipelines.config import Runtime, RayRuntime\n"
        "from pipelines.errors import EnvironmentFault\n"
        "try:\n"
        "    with cluster.connect(Runtime(workers=1, ray=RayRuntime(address='127.0.0.1:1')), pathlib.Path('j')): pass\n"
        "except EnvironmentFault as error: print(error)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert "no Ray cluster can be used at 127.0.0.1:1" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_stage_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import sys, pathlib, signal; from pipelines.adapters import cluster; from pipelines.config import Runtime\n"
        "from tests.adapters import functions as f; out = pathlib.Path(sys.argv[1])\n"
        "def stop(*_): raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "with cluster.connect(Runtime(workers=2, threads=2), out / 'journal.jsonl') as rays:\n"
        "    rays.train(f.sleeps, out, out)\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PREFLOOP_"))}
    stage = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=env, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 300  # two workers' imports, on a machine that others use as well
        while len(pids := [int(path.name[4:]) for path in tmp_path.glob("pid-*")]) < 2:
            assert stage.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        before = time.monotonic()
        stage.send_signal(number)
        code = stage.wait(timeout=30)
        assert code == {signal.SIGINT: -2, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() - before < 15
            time.sleep(0.1)
    finally:
        stage.kill()


@pytest.mark.slow
def test_workers_land_on_both_nodes_of_a_cluster(tmp_path: Path) -> None:
    """Two nodes by `ray start`, one CPU each; the stage is a process of its own, as under DVC."""
    script = (
        "import sys, pathlib; from pipelines.adapters import cluster; from pipelines.config import RayRuntime, Runtime\n"
        "from tests.adapters import functions as f; out = pathlib.Path.cwd()\n"
        "runtime = Runtime(workers=2, threads=2, ray=RayRuntime(address=sys.argv[1]))\n"
        "with cluster.connect(runtime, out / 'journal.jsonl') as rays:\n"
        "    print(rays.map(f.squares, 0, range(5)), {folder for *_, folder in rays.map(f.where, None, range(2))})\n"
        "    rays.train(f.regression, f.Job(out), out)\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PREFLOOP_"))}
    env["PYTHONPATH"] = str(ROOT)
    nodes = [sys.executable, str(ROOT / "infra" / "two_nodes.py")]
    try:
        started = subprocess.run([*nodes, "start"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        command = [sys.executable, "-c", script, started.stdout.strip()]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"[0, 1, 4, 9, 16] {{{str(tmp_path)!r}}}\n"
    finally:
        subprocess.run([*nodes, "stop"], cwd=tmp_path, env=env, check=True)
    lines = placements(tmp_path)
    assert len({line["node"] for line in lines if line["call"] == "map"}) == 2
    assert len({line["node"] for line in lines if line["call"] == "train"}) == 2
    assert len({line["actor"] for line in lines}) == 4
    assert float(torch.load(tmp_path / "w.pt")) == pytest.approx(exact(4), abs=1e-5)
