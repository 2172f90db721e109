"""Critique and revision: what is asked, of a function, of a real server and of a real model."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines import revise as command
from pipelines.config import Constitution, Endpoint, Generation, Params
from pipelines.data.schemas import PROMPTS
from pipelines.data.tables import write_table
from pipelines.errors import ConfigurationError
from pipelines.judges.revision import CRITIQUE_TOKENS, open_writer, revise
from tests import small
from tests.judges import models
from tests.judges.server import serving

RULES = ["Be kind.", "Be short.", "Be true."]


def test_every_answer_is_criticised_by_a_principle_and_written_anew() -> None:
    """A writer that answers with what it was asked: the critique is about the answer, the revision about both."""
    asked: list[tuple[list[str], int]] = []

    def write(requests: list[str], tokens: int) -> list[str]:
        asked.append((requests, tokens))
        return [f'"C{n}"' if len(asked) == 1 else f' "R{n}" ' for n in range(len(requests))]

    found = revise(["p0", "p1"], [' bad"one', "worse"], RULES, write, 7, seed=1)
    assert [(row.critique, row.revision) for row in found] == [('"C0"', " R0"), ('"C1"', "R1")], "spaced as the answers were"
    (critiques, first), (revisions, second) = asked
    assert (first, second) == (CRITIQUE_TOKENS, 7)
    for n, row in enumerate(found):
        for request in (critiques[n], revisions[n]):
            assert f"Prompt: {json.dumps(row.prompt)}\nAnswer: {json.dumps(row.answer)}\n" in request
            assert row.principle in request
        assert f"Critique: {json.dumps(row.critique)}\n" in revisions[n]


def test_each_principle_gets_its_share() -> None:
    """900 prompts, three principles: 300 each, within four standard deviations (57)."""
    prompts = [f"p{n}" for n in range(900)]
    found = revise(prompts, ["a"] * 900, RULES, lambda requests, _: ["x"] * len(requests), 1, seed=1)
    counts = Counter(row.principle for row in found)
    assert set(counts) == set(RULES)
    assert all(abs(count - 300) <= 57 for count in counts.values())


def test_a_server_writes_and_is_asked_once(tmp_path: Path) -> None:
    with serving() as server:
        server.reply = lambda request, _: (
            200,
            {},
            json.dumps({"choices": [{"message": {"content": f" {request['max_tokens']} "}}]}).encode(),
        )
        endpoint = Endpoint(url=server.url, model="m", requests_per_minute=100_000)
        write = open_writer(Constitution(principles="data/constitutions/x.yaml", endpoint=endpoint), Generation(), tmp_path, 1)
        assert write(["one", "two"], 9) == write(["two", "one"], 9) == ["9", "9"]
        assert len(server.requests) == 2
        assert {(request["max_tokens"], request["temperature"]) for request in server.requests} == {(9, 1.0)}


def _params(root: Path, **judge: Any) -> Params:
    sections: dict[str, Any] = {name: {} for name in ("prepare", "base", "sft", "reward", "policies", "evaluate", "report")}
    generation = {"max_new_tokens": 6, "batch_size": 4}
    sections["preferences"] = {"judge": judge, "precision": "float32", "generation": generation}
    sections["runtime"] = {"threads": 1}
    return Params.model_validate(sections)


def test_the_command_writes_demonstrations_that_prepare_reads(tmp_path: Path) -> None:
    """Real models of random weights: the rows come from the prompts in training, repeat, and pass the check of the data."""
    from pipelines.data import jsonl

    small.model_folder(tmp_path / "artifacts/sft/model")
    same = {"reference": " end.", "template": "plain", "source": "test", "group": "lear"}
    rows = [{"id": f"q{n}", "prompt": f"LEAR: {n}"} | same | {"split": "train" if n < 3 else "test"} for n in range(4)]
    write_table(pd.DataFrame(rows), tmp_path / "artifacts/prepared/prompts.parquet", PROMPTS)
    constitution = {"principles": models.principles(tmp_path), "model": models.language_model(tmp_path), "precision": "float32"}
    params = _params(tmp_path, kind="constitution", gold=False, constitution=constitution)
    found = command.revised(tmp_path, params, limit=0)
    assert [row["prompt"] for row in found] == ["LEAR: 0", "LEAR: 1", "LEAR: 2"]
    assert command.revised(tmp_path, params, limit=2) == found[:2]
    path = tmp_path / "revised.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    assert [record["completion"] for _, record in jsonl.records(path, path.name, 2**16)] == [row["completion"] for row in found]
    with pytest.raises(ConfigurationError, match="a constitution revises answers"):
        command.revised(tmp_path, _params(tmp_path, kind="lexicon"), limit=0)
