"""What is asked of a model is spread over workers and remembered, and neither changes a number."""

import json
from pathlib import Path

import pytest

from pipelines.adapters import cluster
from pipelines.config import Classifier, Judge, Runtime
from pipelines.context import Worker
from pipelines.errors import DataError
from pipelines.journal import Journal, read_from
from pipelines.judges import asking, make_judge
from tests.judges import models
from tests.stages.local import Here

WORDS = ["blow", "rage", "sweet", "night", "crack", "winds", "creeps", "pace"]
ANSWERS = [f"{word} {'so ' * (number % 5)}" for number, word in enumerate(WORDS)]
PROMPTS = [""] * len(ANSWERS)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return Judge(kind="classifier", classifier=Classifier(model=models.classifier(tmp_path), label="kind", batch_size=3))


def _kept(root: Path) -> list[Path]:
    return sorted((root / asking.BATCHES).rglob("*.json"))


def test_neither_memory_nor_workers_nor_order_change_a_score(tmp_path: Path, judge: Judge) -> None:
    """Bit for bit: without a cluster, on one worker, on three, from memory, in another order, with rows asked twice."""
    plain = make_judge(judge, tmp_path)(PROMPTS, ANSWERS)
    assert _kept(tmp_path) == []
    for shards in (3, 1):
        assert make_judge(judge, tmp_path, Here(shards))(PROMPTS, ANSWERS) == plain
        assert len(_kept(tmp_path)) == 3  # 8 rows in batches of 3
    turned = make_judge(judge, tmp_path, Here(2))(PROMPTS * 2, ANSWERS[::-1] + ANSWERS)
    assert turned == plain[::-1] + plain
    assert len(_kept(tmp_path)) == 3


def test_a_rerun_asks_nothing_and_a_damaged_memory_is_asked_again(tmp_path: Path, judge: Judge) -> None:
    """A number planted in the memory comes back, so the model was not run; a file that is not whole counts for nothing."""
    plain = make_judge(judge, tmp_path, Here(1))(PROMPTS, ANSWERS)
    place = _kept(tmp_path)[0]
    rows = json.loads(place.read_text())
    place.write_text(json.dumps([[123.0, *rows[0][1:]], *rows[1:]]))
    assert 123.0 in make_judge(judge, tmp_path, Here(1))(PROMPTS, ANSWERS)
    for damaged in ("", "[[1.0, 0.0", "[[1.0, 0.0, 0, 0]]", "{}"):
        place.write_text(damaged)
        assert make_judge(judge, tmp_path, Here(1))(PROMPTS, ANSWERS) == plain


def test_another_model_or_setting_is_another_judge(tmp_path: Path, judge: Judge) -> None:
    first = asking.identity(judge, tmp_path)
    assert asking.identity(judge.model_copy(update={"gold": False}), tmp_path) == first
    settings = judge.content["classifier"]
    other = judge.model_copy(update={"classifier": settings.model_copy(update={"label": "harsh"})})
    assert asking.identity(other, tmp_path) != first
    models.classifier(tmp_path, seed=1)
    assert asking.identity(judge, tmp_path) != first


def test_work_is_journaled_and_what_is_no_number_stops_it(tmp_path: Path, judge: Judge) -> None:
    journal = tmp_path / "journal.jsonl"
    cut = list(asking.batches(list(zip(PROMPTS, ANSWERS, strict=True)), 3))
    job = asking.Job(judge, tmp_path, "x")
    assert [len(part) for part in asking.answered(job, cut, Worker(0, 1, "cpu", Journal(journal)))] == [3, 3, 2]
    lines, _ = read_from(journal, 0)
    assert [(line["step"], line["total"], line["note"]) for line in lines] == [(1, 3, "judge"), (2, 3, "judge"), (3, 3, "judge")]
    with pytest.raises(DataError, match="judge classifier: a score is nan"):
        asking.checked([asking.Opinion(float("nan"))], "classifier")


@pytest.mark.slow
def test_ray_actors_give_the_same_scores(tmp_path: Path, judge: Judge) -> None:
    """A real cluster of two actors with one thread each; the memory is off limits, because actors have it to themselves."""
    runtime = Runtime(workers=2, threads=2)
    with cluster.start_local(runtime), cluster.connect(runtime, tmp_path / "journal.jsonl") as rays:
        spread = make_judge(judge, tmp_path, rays)(PROMPTS, ANSWERS)
    assert spread == pytest.approx(make_judge(judge, tmp_path)(PROMPTS, ANSWERS), abs=1e-5)
    placed = [json.loads(line) for line in (tmp_path / "placements.jsonl").read_text().splitlines()]
    assert len({line["actor"] for line in placed if line["function"].endswith("asking.answered")}) == 2
