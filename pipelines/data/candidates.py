"""From what a source holds to candidates: one row a possible demonstration or prompt, with its split.

Columns of a candidate: those of the tables of demonstrations and prompts together; ``completion`` is missing where no
clause ends within the budget, ``askable`` says whether the row is long enough to be a prompt.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from pipelines.config import Prepare
from pipelines.data import jsonl, phrasing, schemas
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


def from_jsonl(path: Path, root: Path, prepare: Prepare) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows of a file as candidates, corpus and, where they are preferences, pairs: the chosen answer is demonstrated.

    Demonstrations are split by their ``group`` where they have one; preferences by prompt, as their group is who judged.
    """
    found = jsonl.read_jsonl(path, root, (jsonl.PREFERENCE, jsonl.DEMONSTRATION))
    rows = []
    for number, row in enumerate(found):
        answer = jsonl.joined(row["prompt"], row.get("chosen") or row["completion"])
        group = row["group"] if "group" in row and "completion" in row else f"prompt-{_hash(row['prompt'])}"
        rows.append(
            {
                "id": f"{path.stem}-{number:06d}",
                "prompt": row["prompt"],
                "completion": answer,
                "reference": answer,
                "template": "as_given",
                "source": path.stem,
                "group": group,
                "split": split_of(group, prepare.validation_fraction, prepare.test_fraction),
                "askable": True,
            }
        )
    candidates = pd.DataFrame(rows)
    corpus = candidates[["id", "group", "split"]].assign(text=candidates["prompt"] + candidates["completion"])
    splits = dict(zip(candidates["prompt"], candidates["split"], strict=True))
    pairs = as_pairs(found if "chosen" in found[0] else [], path.stem, splits, {}, prepare)
    return candidates, corpus, pairs


def as_pairs(found: list[jsonl.Row], source: str, splits: dict[str, str], ids: dict[str, str], prepare: Prepare) -> pd.DataFrame:
    """Rows of people as the table of pairs; how much better the chosen answer is, nobody said (margin NaN)."""
    rows = []
    for number, row in enumerate(found):
        prompt = row["prompt"]
        group = f"prompt-{_hash(prompt)}"
        split = splits.get(prompt) or split_of(group, prepare.validation_fraction, prepare.test_fraction)
        rows.append(
            {
                "id": f"{source}-{number:06d}",
                "prompt_id": ids.get(prompt, group),
                "prompt": prompt,
                "chosen": jsonl.joined(prompt, row["chosen"]),
                "rejected": jsonl.joined(prompt, row["rejected"]),
                "judge": "people",
                "group": row.get("group", "all"),
                "margin": float("nan"),
                "source": source,
                "split": split,
                "chosen_ended": True,
                "rejected_ended": True,
            }
        )
    return pd.DataFrame(rows, columns=list(schemas.PAIRS.columns))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
