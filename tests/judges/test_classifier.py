"""A sequence classifier as a judge: log-odds by hand and by transformers' own pipeline; what is no classifier is refused."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from pipelines.config import Classifier, Judge
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault
from pipelines.judges import make_judge, name_of
from pipelines.judges.classifier import log_odds
from tests import small
from tests.judges import models

TEXTS = ["Parting is such sweet sorrow,", "blow", "", "rage! rage! blow, winds, and crack", "Good night"]


def _judge(place: str, **some: object) -> Judge:
    return Judge(kind="classifier", classifier=Classifier.model_validate({"model": place, "label": "kind"} | some))


def test_log_odds_by_hand() -> None:
    """Softmax of (2, 1, 0): log p / (1 - p) = 2 - log(e + 1); of one output or labels side by side the logit itself."""
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert log_odds(logits, 0, None).item() == pytest.approx(2 - math.log(math.e + 1))
    assert log_odds(logits, 2, None).item() == pytest.approx(0 - math.log(math.e**2 + math.e))
    assert log_odds(logits, 1, "multi_label_classification").item() == 1.0
    assert log_odds(torch.tensor([[-0.7]]), 0, "regression").item() == pytest.approx(-0.7)


def test_scores_are_the_log_odds_of_transformers_own_pipeline(tmp_path: Path) -> None:
    """One text at a time there, batches with padding here; p / (1 - p) from its probabilities."""
    from transformers import pipeline

    place = models.classifier(tmp_path, labels=("harsh", "kind", "flat"))
    scores = make_judge(_judge(place, batch_size=3), tmp_path)([""] * len(TEXTS), TEXTS)
    classify = pipeline("text-classification", model=str(tmp_path / place), top_k=None)
    for found, score in zip(classify([text or " " for text in TEXTS]), scores, strict=True):
        p = {label["label"]: label["score"] for label in found}["kind"]
        assert score == pytest.approx(math.log(p / (1 - p)), abs=1e-3)
    assert len(set(scores)) == len(TEXTS)


def test_the_prompt_is_read_where_that_is_asked(tmp_path: Path) -> None:
    place = models.classifier(tmp_path)
    alone, both = (make_judge(_judge(place, reads=reads), tmp_path) for reads in ("answer", "prompt_and_answer"))
    assert alone(["LEAR:"], ["blow"]) == alone(["JULIET:"], ["blow"])
    assert both(["LEAR:"], ["blow"]) != both(["JULIET:"], ["blow"])


def test_an_answer_cannot_speak_in_special_tokens(tmp_path: Path) -> None:
    """The text of the end token is text: it reads as other characters do, not as the token."""
    tokenizer = small.tokenizer()
    ids = tokenizer([f"blow{small.EOS}"], split_special_tokens=True)["input_ids"][0]
    assert tokenizer.eos_token_id not in ids
    score = make_judge(_judge(models.classifier(tmp_path)), tmp_path)
    assert score([""], [f"blow{small.EOS}"]) != score([""], ["blow"])


def test_what_is_no_such_classifier_is_said(tmp_path: Path) -> None:
    place = models.classifier(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has no label 'knid'; did you mean 'kind'\?"):
        make_judge(_judge(place, label="knid"), tmp_path)
    with pytest.raises(ConfigurationError, match="it has: harsh, kind"):
        make_judge(_judge(place, label="POSITIVE"), tmp_path)
    with pytest.raises(DataError, match="data/judges/none: no such folder"):
        make_judge(_judge("data/judges/none"), tmp_path)
    small.model_folder(tmp_path / "data/judges/base")  # transformers would make up a head
    with pytest.raises(DataError, match=r"has no trained classifier \(no weights for"):
        make_judge(_judge("data/judges/base", label="LABEL_0"), tmp_path)


def test_a_hub_id_is_taken_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache as huggingface_hub lays it out, without network: the snapshot of the named commit is found, no other."""
    from huggingface_hub import constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--someone--tone" / "snapshots" / revision
    shutil.copytree(tmp_path / models.classifier(tmp_path), snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub = _judge("someone/tone", revision=revision)
    assert make_judge(hub, tmp_path)([""] * 5, TEXTS) == make_judge(_judge("data/judges/tone"), tmp_path)([""] * 5, TEXTS)
    assert name_of(hub) == name_of(_judge("data/judges/tone")) == "classifier:tone"
    with pytest.raises(EnvironmentFault, match="hub model someone/tone at revision 9999"):
        make_judge(_judge("someone/tone", revision="9999"), tmp_path)
