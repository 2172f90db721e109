"""Judges' models small enough for tests, as plain transformers folders below data/judges/ of a project."""

from __future__ import annotations

from pathlib import Path

import torch

from pipelines.models.loading import save_model
from tests import small


def classifier(root: Path, name: str = "tone", labels: tuple[str, ...] = ("harsh", "kind"), seed: int = 0) -> str:
    """A BERT of random weights, large enough in its numbers that its labels differ; returns its place in the project."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    place = f"data/judges/{name}"
    save_model(BertForSequenceClassification(config).eval(), small.tokenizer(), root / place)
    return place


def language_model(root: Path, name: str = "lm", seed: int = 0, context: int = 2048) -> str:
    """A Llama of random weights with room for a question; returns its place in the project."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    config = small.llama(seed).config
    config.max_position_embeddings = context
    config.initializer_range = 0.5
    place = f"data/judges/{name}"
    save_model(LlamaForCausalLM(config).eval(), small.tokenizer(), root / place)
    return place


def principles(root: Path) -> str:
    """A constitution of one principle."""
    place = "data/constitutions/kind.yaml"
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_text("principles:\n- The answer is kind.\n", encoding="utf-8")
    return place
