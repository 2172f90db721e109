"""From what a source holds to candidates: one row a possible demonstration or prompt, with its split.

Columns of a candidate: those of the tables of demonstrations and prompts together; ``completion`` is missing where no
clause ends within the budget, ``askable`` says whether the row is long enough to be a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from pipelines.config import Prepare
from pipelines.data import phrasing, schemas
from pipelines.data.plays import Speech
from pipelines.data.splits import split_of

COLUMNS = ["id", "prompt", "completion", "reference", "template", "source", "group", "split", "askable"]


def from_plays(speeches: list[Speech], prepare: Prepare) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Speeches as candidates (opening words and continuation), and whole plays as the corpus."""
    splits = {
        play: split_of(play, prepare.validation_fraction, prepare.test_fraction)
        for play in sorted({speech.play for speech in speeches})
    }
    rows, lines = [], {play: list[str]() for play in splits}
    for speech in speeches:
        lines[speech.play].append(f"{speech.speaker}: {speech.text}")
        words = speech.text.split()
        opening, rest = words[: prepare.prompt_words], words[prepare.prompt_words :]
        if len(rest) < prepare.min_completion_words:
            continue
        cut = phrasing.cut_at_clause(rest, prepare.min_completion_words, prepare.max_completion_tokens)
        template = phrasing.template_of(speech.id)
        rows.append(
            {
                "id": speech.id,
                "prompt": phrasing.prompt_of(template, speech.speaker, opening),
                "completion": cut,
                "reference": cut or " " + " ".join(rest[: phrasing.word_budget(prepare.max_completion_tokens)]),
                "template": template,
                "source": prepare.package,
                "group": speech.play,
                "split": splits[speech.play],
                "askable": len(words) >= prepare.min_words,
            }
        )
    corpus = [{"id": play, "group": play, "split": splits[play], "text": "\n".join(spoken)} for play, spoken in lines.items()]
    return pd.DataFrame(rows, columns=COLUMNS), pd.DataFrame(corpus)


@dataclass(frozen=True)
class Tables:
    """What the rows of all sources become: candidates for demonstrations and prompts, the corpus, pairs and single labels."""

    candidates: pd.DataFrame
    corpus: pd.DataFrame
    pairs: pd.DataFrame
    labels: pd.DataFrame


def from_rows(path: Path) -> Tables:
    """A vetted file of rows as tables. The chosen answer of a pair is demonstrated; so is an answer that was found good."""
    found = pq.read_table(path).to_pandas()
    found["answer"] = found["completion"].fillna(found["chosen"])
    shown = found[(found["kind"] != "label") | found["label"].fillna(False).astype(bool)]
    shown = shown.drop_duplicates(["prompt", "answer"])
    answers = [joined(prompt, answer) for prompt, answer in zip(shown["prompt"], shown["answer"], strict=True)]
    candidates = pd.DataFrame(
        {
            "id": shown["id"],
            "prompt": shown["prompt"],
            "completion": answers,
            "reference": answers,
            "template": shown["template"].fillna("as_given"),
            "source": shown["source"],
            "group": shown["split_group"],
            "split": shown["split"],
            "askable": True,
            "task": shown["task"],
        }
    ).reset_index(drop=True)
    corpus = candidates[["id", "group", "split"]].assign(text=candidates["prompt"] + candidates["completion"])
    return Tables(candidates, corpus, as_pairs(found[found["kind"] == "pair"]), as_labels(found[found["kind"] == "label"]))


def as_pairs(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of people as the table of pairs. How much better the chosen answer is stays unknown (NaN) where nobody said."""
    table = pd.DataFrame(
        {
            "id": found["id"],
            "prompt_id": found["split_group"],
            "prompt": found["prompt"],
            "chosen": _answers(found, "chosen"),
            "rejected": _answers(found, "rejected"),
            "judge": "people",
            "group": found["group"].fillna("all"),
            "margin": found["margin"].astype(float),
            "source": found["source"],
            "split": found["split"],
            "chosen_ended": True,
            "rejected_ended": True,
        },
        columns=list(schemas.empty(schemas.PAIRS)),
    )
    for name in ("annotator", "weight"):
        if found[name].notna().any():
            table[name] = found[name]
    return table.reset_index(drop=True)


def as_labels(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of people as the table of single labels."""
    table = pd.DataFrame(
        {
            "id": found["id"],
            "prompt_id": found["split_group"],
            "prompt": found["prompt"],
            "completion": _answers(found, "completion"),
            "label": found["label"].astype(bool),
            "judge": "people",
            "group": found["group"].fillna("all"),
            "source": found["source"],
            "split": found["split"],
        }
    )
    return table.reset_index(drop=True)


def joined(prompt: str, answer: str) -> str:
    """The answer as it follows its prompt: with a space before it where neither brings one."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else " " + answer


def _answers(found: pd.DataFrame, name: str) -> pd.Series:
    texts = [joined(prompt, answer) for prompt, answer in zip(found["prompt"], found[name], strict=True)]
    return pd.Series(texts, index=found.index, dtype=object if not texts else None)
