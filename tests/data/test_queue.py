"""The file that a person fills in: what comes back is what was written down, and nothing else is taken."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.queue import read_queue, write_queue
from pipelines.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ABOUT = {"prompt_id": "q1", "group": "lear", "split": "train", "source": "round-001"}


def row(prompt: str, first: str, second: str) -> dict[str, Any]:
    """A pair whose second answer was cut."""
    return {"prompt": prompt, "first": first, "second": second, "about": {**ABOUT, "first_ended": True, "second_ended": False}}


def fill(path: Path, winners: list[str], **more: Any) -> list[dict[str, Any]]:
    """Write a person's answers into the file; return its lines as objects."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    for line, winner in zip(lines, winners, strict=True):
        line.update({"winner": winner, **more})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return lines


@settings(max_examples=60)
@given(texts=st.lists(st.tuples(TEXT, TEXT, TEXT, st.sampled_from(["first", "second", "tie"])), min_size=1, max_size=5))
def test_what_is_answered_comes_back(texts: list[tuple[str, str, str, str]]) -> None:
    texts = list(dict.fromkeys((*text[:3], "first" if place % 3 == 0 else text[3]) for place, text in enumerate(texts)))
    texts = [text for place, text in enumerate(texts) if text[:3] not in [one[:3] for one in texts[:place]]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "round-001.jsonl")
        write_queue(path, [row(*text[:3]) for text in texts])
        fill(path, [text[3] for text in texts], annotator="anna")
        found, ties = read_queue(path)
    won = [
        (p, a, b, True, False) if winner == "first" else (p, b, a, False, True) for p, a, b, winner in texts if winner != "tie"
    ]
    columns = ["prompt", "chosen", "rejected", "chosen_ended", "rejected_ended"]
    assert list(found[columns].itertuples(index=False, name=None)) == won
    assert ties == len(texts) - len(won)
    assert set(found["annotator"]) == {"anna"}
    assert found[list(ABOUT)].iloc[0].to_dict() == ABOUT


def test_a_file_that_is_not_as_it_was_written_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "round-001.jsonl"
    write_queue(path, [row("LEAR:", " a", " b"), row("LEAR:", " c", " d")])
    with pytest.raises(DataError, match=r"unanswered round-001.jsonl:1: 2 lines have no winner yet"):
        read_queue(path)
    lines = fill(path, ["first", "right"])
    with pytest.raises(DataError, match=r"unknown-winner round-001.jsonl:2 \[winner\] 'right' \| first, second, tie"):
        read_queue(path)
    path.write_text(json.dumps({**lines[0], "first": " kinder"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"changed round-001.jsonl:1: "):
        read_queue(path)
    path.write_text(2 * (json.dumps(lines[0]) + "\n"), encoding="utf-8")
    with pytest.raises(DataError, match=r"duplicate round-001.jsonl:2: answered twice by the same person"):
        read_queue(path)
    path.write_text("".join(json.dumps({**lines[0], "annotator": who}) + "\n" for who in ("anna", "ben")), encoding="utf-8")
    assert read_queue(path)[0]["annotator"].tolist() == ["anna", "ben"], "a line taken out, another by two people"


def test_nothing_in_a_line_says_who_answered(tmp_path: Path) -> None:
    path = tmp_path / "round-001.jsonl"
    write_queue(path, [row("LEAR:", " a", " b")])
    line = json.loads(path.read_text(encoding="utf-8"))
    assert list(line) == ["id", "prompt", "first", "second", "winner", "annotator", "about"]
    assert (line["winner"], line["annotator"]) == ("", "")
