"""People's votes from a file: which of two models' answers they found better.

One JSON object a line: ``{"prompt_id": ..., "answer": "A", "winner": NAME}``, where NAME is one of the two models as they are
named in the comparison, or ``tie``. Several votes on the same answers each count.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.data import jsonl
from pipelines.errors import DataError
from pipelines.evaluation.comparison import Paired, sampled

MAX_BYTES = 2**16
FIELDS = ("prompt_id", "answer", "winner")


def read_votes(path: Path, names: tuple[str, str]) -> pd.DataFrame:
    """The votes on the models ``names``: prompt_id, answer, outcome (1 = the first won, 0 = the second, 0.5 = a tie).

    Raises DataError with file and line for a vote that names another model or lacks a field, and for a file without votes.
    """
    worth = {names[0]: 1.0, names[1]: 0.0, "tie": 0.5}
    rows = []
    for number, vote in jsonl.records(path, path.name, MAX_BYTES):
        wrong = next((name for name in FIELDS if not isinstance(vote.get(name), str) or not vote[name]), "")
        if wrong:
            raise DataError(f"missing {path.name}:{number} [{wrong}] no such text | {', '.join(FIELDS)} | fill it in")
        if vote["winner"] not in worth:
            raise DataError(
                f"unknown-model {path.name}:{number} [winner] {vote['winner']!r} | {', '.join(worth)} | "
                "name a model as it is compared"
            )
        rows.append({name: vote[name] for name in FIELDS[:2]} | {"outcome": worth[vote["winner"]]})
    if not rows:
        raise DataError(f'empty {path.name}: 0 votes | limit 1 | one {{"prompt_id": ..., "answer": "A", "winner": ...}} a line')
    return pd.DataFrame(rows)


def judged_by(votes: pd.DataFrame, ours: pd.DataFrame, theirs: pd.DataFrame, shown: str) -> Paired:
    """The votes as comparisons of the answers in two samples tables. Raises DataError for a vote on an answer not in both."""
    keys = ["prompt_id", "answer"]
    lengths = [sampled(table).set_index(keys)["tokens"].rename(name) for name, table in (("ours", ours), ("theirs", theirs))]
    joined = votes.merge(pd.concat(lengths, axis=1).reset_index(), on=keys, how="left")
    unknown = joined[joined[["ours", "theirs"]].isna().any(axis=1)]
    if len(unknown):
        first = unknown.iloc[0]
        raise DataError(
            f"unknown-answer {shown}: {len(unknown)} of {len(votes)} votes are on answers that the two models did not both give "
            f"(the first: answer {first['answer']} to {first['prompt_id']}) | 0 | vote on what samples.parquet holds"
        )
    gaps = (joined["ours"] - joined["theirs"]).to_numpy(dtype=np.float64)
    return Paired(joined["outcome"].to_numpy(dtype=np.float64), joined["prompt_id"].tolist(), gaps)
