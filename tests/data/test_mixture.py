"""Instruction mixtures by hand, and templates: every one occurs, nothing escapes the sandbox."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.config.data import Mixture, Prepare, Source
from pipelines.data.mixture import draw, quotas, rates, selected
from pipelines.data.phrasing import cut_by_sampler
from pipelines.data.phrasings import of_sources
from pipelines.data.rows import ingest
from pipelines.errors import ConfigurationError, DataError
from tests.data.helpers import rows_of

SIZES = {"big": 10_000, "mid": 1_000, "small": 10}
FLAN = """
tasks:
  nli/rte:
    plain: {prompt: "{{ premise }} So {{ hypothesis }}?", completion: "{{ answer }}"}
    first: {prompt: "Does it follow that {{ hypothesis }} from {{ premise }}?", completion: "{{ answer }}"}
    inverse: {prompt: "Write a premise of: {{ hypothesis }} ({{ answer }})", completion: "{{ premise }}"}
"""


def test_rates_by_hand() -> None:
    assert rates(SIZES, {"big": 1.0, "mid": 2.0, "small": 1.0}, Mixture(sampling="weights")) == {
        "big": 0.25,
        "mid": 0.5,
        "small": 0.25,
    }
    sized = rates(SIZES, {}, Mixture(sampling="size", size_cap=3000))
    assert sized == pytest.approx({"big": 3000 / 4010, "mid": 1000 / 4010, "small": 10 / 4010})
    warm = rates({"a": 400, "b": 100}, {}, Mixture(sampling="temperature", temperature=2.0))
    assert warm == pytest.approx({"a": 2 / 3, "b": 1 / 3})  # 20 : 10
    assert rates({"a": 400, "b": 100}, {}, Mixture(sampling="temperature", temperature=1.0)) == pytest.approx(
        {"a": 0.8, "b": 0.2}
    )


def test_quotas_by_hand() -> None:
    assert quotas({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 9, "b": 9, "c": 9}, 8) == {"a": 4, "b": 2, "c": 2}
    assert quotas({"a": 0.5, "b": 0.5}, {"a": 2, "b": 9}, 8) == {"a": 2, "b": 6}, "what one lacks, the other gives"
    assert quotas({"a": 0.5, "b": 0.5}, {"a": 2, "b": 3}, 8) == {"a": 2, "b": 3}
    assert quotas({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, {"a": 9, "b": 9, "c": 9}, 4) == {"a": 2, "b": 1, "c": 1}
    for count in range(40):
        assert sum(quotas(rates(SIZES, {}, Mixture(sampling="temperature")), SIZES, count).values()) == count


def _table(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"split": "train", "template": "t", "task": "a"} | columns)


def test_a_draw_takes_the_first_rows_of_every_task() -> None:
    rows = _table(id=range(12), task=["big"] * 10 + ["small"] * 2)
    mixture = Mixture(sampling="weights")
    assert draw(rows, 6, {}, mixture)["id"].tolist() == [0, 1, 2, 3, 10, 11]
    assert draw(rows, 6, {}, Mixture())["id"].tolist() == [0, 1, 2, 3, 4, 5]


def test_tasks_and_templates_are_knobs_and_a_larger_one_only_adds() -> None:
    rows = _table(id=range(40), task=[f"task {n % 5}" for n in range(40)], template=[f"template {n % 8}" for n in range(40)])
    before: set[int] = set()
    for count in range(1, 6):
        kept, dropped = selected(rows, Mixture(tasks=count), 1)
        assert kept["task"].nunique() == count
        assert before <= set(kept["id"])
        assert dropped.get("task_not_used", 0) == 40 - len(kept)
        before = set(kept["id"])
    kept, _ = selected(rows, Mixture(templates=2), 1)
    assert (kept.groupby("task")["template"].nunique() == 2).all()
    assert selected(rows, Mixture(), 1)[0]["id"].tolist() == list(range(40))


def test_held_out_templates_are_in_the_test_split_only() -> None:
    rows = _table(id=range(4), template=["seen", "unseen"] * 2, split=["train", "train", "test", "test"])
    kept, dropped = selected(rows, Mixture(held_out_templates=["unseen"]), 1)
    assert (kept["id"].tolist(), dropped) == ([0, 2, 3], {"held_out_template": 1})


def _phrased(root: Path, text: str, rows: list[dict[str, Any]], seed: int = 1, **mixture: Any) -> Any:
    (root / "data" / "templates").mkdir(parents=True, exist_ok=True)
    (root / "data" / "templates" / "flan.yaml").write_text(text, encoding="utf-8")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = Source(path="rows.jsonl", format="template", templates="data/templates/flan.yaml", category="nli")
    prepare = Prepare().model_copy(update={"sources": {"rte": source}, "mixture": Mixture(**mixture)})
    found = ingest(prepare, root, root / "scratch", seed)
    names = ("prompt", "completion", "template", "task", "split", "split_group")
    return found, rows_of(found, *names)


RTE = [{"premise": f"It rains on day {n}.", "hypothesis": f"day {n} is wet", "answer": "yes"} for n in range(300)]


def test_templates_are_applied_by_hash_and_every_one_occurs(tmp_path: Path) -> None:
    _, rows = _phrased(tmp_path, FLAN, RTE)
    counts = Counter(row[2] for row in rows)
    assert set(counts) == {"plain", "first", "inverse"}
    assert min(counts.values()) > 60, "each about a hundred times"
    expected = {
        "plain": ("It rains on day {n}. So day {n} is wet?", "yes"),
        "first": ("Does it follow that day {n} is wet from It rains on day {n}.?", "yes"),
        "inverse": ("Write a premise of: day {n} is wet (yes)", "It rains on day {n}."),
    }
    for number, (prompt, completion, template, task, _, _) in enumerate(rows):
        assert (prompt, completion) == tuple(text.format(n=number) for text in expected[template])
        assert task == "nli/rte"
    assert _phrased(tmp_path, FLAN, RTE[150:])[1] == rows[150:], "a row's phrasing does not hang on other rows"


def test_what_stands_twice_is_phrased_alike_and_found(tmp_path: Path) -> None:
    """Rows without a prompt by all their fields; a pair by its prompt, so that its opposite is asked in the same words."""
    found, _ = _phrased(tmp_path, FLAN, [*RTE[:40], *RTE[:40]])
    assert found.repeats.tolist() == [[40 + number, number] for number in range(40)]
    text = "tasks: {'*': {one: {prompt: 'Q: {{ prompt }}', chosen: '{{ chosen }}', rejected: '{{ rejected }}'},"
    text += " two: {prompt: '{{ prompt }}?', chosen: '{{ chosen }}', rejected: '{{ rejected }}'}}}"
    pairs = [{"prompt": f"Ask {number}", "chosen": "yes", "rejected": "no"} for number in range(20)]
    turned = [pair | {"chosen": "no", "rejected": "yes"} for pair in pairs]
    found, rows = _phrased(tmp_path, text, [*pairs, *turned])
    assert {row[2] for row in rows} == {"one", "two"}
    assert np.sort(found.conflicts, axis=1).tolist() == [[number, 20 + number] for number in range(20)]


def test_the_number_of_templates_and_held_out_ones(tmp_path: Path) -> None:
    assert len({row[2] for row in _phrased(tmp_path, FLAN, RTE, templates=1)[1]}) == 1
    _, rows = _phrased(tmp_path, FLAN, RTE, held_out_templates=["inverse"])
    assert {row[4] for row in rows if row[2] == "inverse"} == {"test"}
    assert {row[2] for row in rows if row[4] == "train"} == {"plain", "first"}


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ premise.__init__.__globals__['os'] }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_templates_run_in_a_sandbox(tmp_path: Path, prompt: str) -> None:
    text = json.dumps({"tasks": {"*": {"evil": {"prompt": prompt, "completion": "a"}}}})
    with pytest.raises(ConfigurationError, match=r"data/templates/flan\.yaml: template evil: (Security|Overflow)Error"):
        _phrased(tmp_path, text, RTE)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tasks: [", "not valid YAML"),
        ("tasks: {}\nmore: 1", "expected tasks:"),
        ("tasks: {'*': {one: {prompt: a}}}", r"\*\.one: expected prompt and completion"),
        ("tasks: {'*': {one: {prompt: '{{ a', completion: b}}}", r"\*\.one: .*mend the template"),
        ("tasks: {'*': {one: {prompt: !!python/name:os.system '', completion: b}}}", "not valid YAML"),
    ],
)
def test_broken_template_files_are_named(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigurationError, match=part):
        _phrased(tmp_path, text, RTE)


def test_a_field_that_a_template_needs_and_a_row_lacks_makes_a_bad_row(tmp_path: Path) -> None:
    found, rows = _phrased(tmp_path, FLAN, [*RTE, {"premise": "a", "answer": "no"}])
    assert len(rows) == 300
    assert found.ledger.lines()[0].startswith("missing rows.jsonl:301 (line 301)")
    with pytest.raises(DataError, match="'hypothesis' is undefined in 1 of 301 rows"):
        found.ledger.settle(0.0, "rows.jsonl")


def test_prompts_are_cut_to_uniform_lengths() -> None:
    """2 to 8 words, 700 draws: each length 100 times on average, sd 9.3; five standard deviations either way."""
    prepare = Prepare()
    text = " ".join(f"word{n}" for n in range(30))
    cuts = [cut_by_sampler(text, prepare, seed * 2**40 // 7) for seed in range(700)]
    lengths = Counter(len(cut[0].split()) for cut in cuts if cut)
    assert set(lengths) == set(range(2, 9))
    assert all(53 <= count <= 147 for count in lengths.values())
    assert all(cut and text.startswith(cut[0] + cut[1]) for cut in cuts)
    assert cut_by_sampler("one two", prepare, 0) is None


def test_an_intent_in_every_template_that_asks_for_its_answer(tmp_path: Path) -> None:
    """The inverse template asks for the premise, which is another intent; a source without templates gives nothing."""
    (tmp_path / "data/templates").mkdir(parents=True)
    (tmp_path / "data/templates/flan.yaml").write_text(FLAN, encoding="utf-8")
    task = {"category": "nli", "dataset": "rte", "answer": "yes"}
    rows = [task | {"premise": f"It rains {n}.", "hypothesis": f"it is wet {n}"} for n in range(3)]
    (tmp_path / "data/rte.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "data/plain.jsonl").write_text('{"prompt": "Q", "completion": "A"}\n', encoding="utf-8")
    phrased = Source(path="data/rte.jsonl", format="template", templates="data/templates/flan.yaml")
    given = Source(path="data/plain.jsonl")
    prepare = Prepare(source="files", learns_from="data", sources={"rte": phrased, "plain": given})
    found = of_sources(prepare, tmp_path, 1, ["plain-000000", "rte-000002", "rte-000000"])
    assert found.to_dict("records") == [
        {"intent": "rte-000002", "template": "first", "prompt": "Does it follow that it is wet 2 from It rains 2.?"},
        {"intent": "rte-000002", "template": "plain", "prompt": "It rains 2. So it is wet 2?"},
        {"intent": "rte-000000", "template": "first", "prompt": "Does it follow that it is wet 0 from It rains 0.?"},
        {"intent": "rte-000000", "template": "plain", "prompt": "It rains 0. So it is wet 0?"},
    ]
