"""Judges: VADER worked by hand from its published formula, callables that are wrong in every way."""

import math
from pathlib import Path

import pytest

from pipelines.config import Judge
from pipelines.errors import ConfigurationError, DataError
from pipelines.judges import callables, make_judge, name_of


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project root of its own with a judge file in it."""
    (tmp_path / "taste.py").write_text(
        "import numpy as np\n"
        "def length(prompts, answers): return [len(a) for a in answers]\n"
        "def array(prompts, answers): return np.ones(len(answers), dtype=np.float32)\n"
        "def short(prompts, answers): return [1.0]\n"
        "def one(prompts, answers): return 0.5\n"
        "def words(prompts, answers): return ['good'] * len(answers)\n"
        "def nan(prompts, answers): return [0.0, float('nan')]\n"
        "def breaks(prompts, answers): raise KeyError('tone')\n"
        "threshold = 3\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(callables, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def _judge(function: str) -> Judge:
    return Judge(kind="callable", callable=f"taste:{function}")


def test_the_compound_score_is_the_normalised_sum_of_valences() -> None:
    judge = make_judge(Judge())
    # valences of the lexicon: good 1.9, great 3.1; compound = s / sqrt(s^2 + 15)
    expected = [1.9 / math.sqrt(1.9**2 + 15), 5.0 / math.sqrt(5.0**2 + 15), 0.0, 0.0]
    assert judge(["", "", "", ""], ["a good man", "a good and great man", "a man", ""]) == pytest.approx(expected, abs=5e-5)


def test_the_prompt_plays_no_part() -> None:
    judge = make_judge(Judge())
    assert judge(["kind and loving"], ["a man"]) == judge(["hateful murder"], ["a man"]) == [0.0]


def test_names_in_tables() -> None:
    assert name_of(Judge()) == "lexicon"
    assert name_of(_judge("length")) == "taste:length"


@pytest.mark.usefixtures("project")
def test_a_callable_of_the_project_scores() -> None:
    assert make_judge(_judge("length"))(["p", "p"], ["ab", "abc"]) == [2.0, 3.0]
    assert make_judge(_judge("array"))(["p", "p"], ["ab", "abc"]) == [1.0, 1.0]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("short", "returned 1 scores; it has to return 2 finite numbers"),
        ("one", "returned float"),
        ("words", "a list that holds str"),
        ("nan", "score 1 is nan"),
        ("breaks", "raised KeyError: 'tone'"),
    ],
)
def test_what_a_judge_does_wrong_is_said(function: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_judge(_judge(function))(["p", "p"], ["ab", "abc"])


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("taste:lenght", "taste has no function lenght; it has: array, breaks, length"),
        ("taste:threshold", "has no function threshold"),
        ("nowhere.at_all:f", "cannot import nowhere.at_all from the project root"),
    ],
)
def test_a_callable_that_is_not_there_is_a_configuration_error(place: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make_judge(Judge(kind="callable", callable=place))
