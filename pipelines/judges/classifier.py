"""A sequence classifier of transformers as a judge: the log-odds of one of its labels."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Classifier
from pipelines.errors import ConfigurationError, DataError
from pipelines.judges.asking import Asked, Opinion, Row, located
from pipelines.models.loading import autocast, check_folder, load_tokenizer

SECTION = "preferences.judge.classifier"


def open_classifier(settings: Classifier, root: Path, device: str) -> Asked:
    """Load the model. Raises ConfigurationError for a label that it does not have, DataError for what is no classifier."""
    folder = located(settings.model, settings.revision, root, SECTION)
    model, tokenizer = _load(folder, settings.model).to(device), load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        raise DataError(f"{settings.model}: the tokenizer has no pad token, so texts cannot share a batch; give it one")
    model.config.pad_token_id = tokenizer.pad_token_id
    label = _label(model.config, settings)
    longest = min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 2**30)))

    @torch.no_grad()
    def asked(rows: Sequence[Row]) -> list[Opinion]:
        answers = [answer or " " for _, answer in rows]  # nothing at all is no token for tokenizers without [CLS]
        texts = [answers] if settings.reads == "answer" else [[prompt for prompt, _ in rows], answers]
        batch = tokenizer(
            *texts, padding=True, truncation=True, max_length=longest, split_special_tokens=True, return_tensors="pt"
        ).to(device)
        with autocast(settings.precision, torch.device(device).type):
            logits = model(**batch).logits
        return [Opinion(value) for value in log_odds(logits.float(), label, model.config.problem_type).tolist()]

    return asked


def log_odds(logits_BL: torch.Tensor, label: int, problem_type: str | None) -> torch.Tensor:
    """log p / (1 - p) of a label [B], from logits [B, L] of B texts and L labels; a single output as it is.

    Labels that exclude each other: z_l - log sum_{k != l} exp z_k; labels side by side (multi-label) have sigmoid(z_l): z_l.
    """
    if logits_BL.shape[1] == 1 or problem_type == "multi_label_classification":
        return logits_BL[:, label]
    others = [place for place in range(logits_BL.shape[1]) if place != label]
    return logits_BL[:, label] - logits_BL[:, others].logsumexp(-1)


def _load(folder: Path, shown: str) -> Any:
    """A classifier with all of its weights: transformers would fill a missing head with random numbers."""
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    check_folder(folder)
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{shown}: no sequence classifier could be loaded from it ({reason})") from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise DataError(f"{shown}: has no trained classifier (no weights for {missing}); name a model that was trained as one")
    return model.eval()


def _label(config: Any, settings: Classifier) -> int:
    names = {str(name): int(place) for place, name in config.id2label.items()}
    if settings.label in names:
        return names[settings.label]
    close = difflib.get_close_matches(settings.label, list(names), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(sorted(names))}"
    raise ConfigurationError(f"{SECTION}.label: {settings.model} has no label {settings.label!r}; {hint}")
