"""Speeches of plays as candidates: one row a possible demonstration or prompt, with its split.

Columns of a candidate: those of the tables of demonstrations and prompts together; ``completion`` is missing where no
clause ends within the budget, ``askable`` says whether the row is long enough to be a prompt, ``key`` and ``order`` are those
of ``streams``.
"""

from __future__ import annotations

import pandas as pd

from pipelines.config import Prepare
from pipelines.data import phrasing
from pipelines.data.plays import Speech
from pipelines.data.splits import split_of
from pipelines.data.streams import asked_keys, place_of

COLUMNS = ["id", "prompt", "completion", "reference", "template", "source", "group", "split", "askable"]


def from_plays(speeches: list[Speech], prepare: Prepare, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
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
    candidates = pd.DataFrame(rows, columns=COLUMNS)
    order = [place_of(seed, id_) for id_ in candidates["id"]]
    return candidates.assign(key=asked_keys(candidates["prompt"]), order=order), pd.DataFrame(corpus)
