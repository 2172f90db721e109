"""People's votes as a judge."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipelines.errors import DataError
from pipelines.evaluation.comparison import summed
from pipelines.evaluation.votes import judged_by, read_votes


def _answers(tokens: int) -> pd.DataFrame:
    return pd.DataFrame([{"prompt_id": id_, "answer": letter, "tokens": tokens} for id_ in "pq" for letter in "AB"])


def _file(folder: Path, *lines: str) -> Path:
    path = folder / "votes.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_votes_become_a_comparison(tmp_path: Path) -> None:
    """ppo, ppo, a tie and sft on two prompts: 2.5 of 4; two people voted on the same answers, and both count."""
    path = _file(
        tmp_path,
        '{"prompt_id": "p", "answer": "A", "winner": "ppo"}',
        '{"prompt_id": "p", "answer": "A", "winner": "ppo", "who": "Ann"}',
        "",
        '{"prompt_id": "p", "answer": "B", "winner": "tie"}',
        '{"prompt_id": "q", "answer": "A", "winner": "sft"}',
    )
    pairs = judged_by(read_votes(path, ("ppo", "sft")), _answers(12), _answers(9), path.name)
    assert pairs.outcomes.tolist() == [1.0, 1.0, 0.5, 0.0]
    assert pairs.gaps.tolist() == [3.0] * 4
    found = summed(pairs, resamples=100, seed=1)
    assert (found.win, found.lose, found.tie, found.win_rate) == (0.5, 0.25, 0.25, 0.625)
    assert (found.signs.won, found.signs.lost) == (1, 1)
    assert judged_by(read_votes(path, ("sft", "ppo")), _answers(9), _answers(12), "v").outcomes.tolist() == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt_id": "p", "answer": "A", "winner": "gpt"}', r"unknown-model votes.jsonl:1 \[winner\] 'gpt' \| ppo, sft, tie"),
        ('{"prompt_id": "p", "winner": "ppo"}', r"missing votes.jsonl:1 \[answer\]"),
        ('{"prompt_id": 3, "answer": "A", "winner": "ppo"}', r"missing votes.jsonl:1 \[prompt_id\]"),
        ("not json", "invalid-json votes.jsonl:1"),
        ("", "0 votes"),
    ],
)
def test_bad_votes_are_refused_by_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_votes(_file(tmp_path, line), ("ppo", "sft"))


def test_votes_on_other_answers_are_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"prompt_id": "z", "answer": "A", "winner": "ppo"}')
    with pytest.raises(DataError, match="1 of 1 votes.*answer A to z"):
        judged_by(read_votes(path, ("ppo", "sft")), _answers(9), _answers(9), path.name)
