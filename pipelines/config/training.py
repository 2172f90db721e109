"""What the training stages share, and the sections ``sft`` and ``reward``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.config.section import Count, Fraction, Positive, Precision, Section

ExcessLength = Literal["raise", "drop", "truncate"]


class Generation(Section):
    """How answers are sampled. ``top_k`` 0 = every token can be drawn; ``repetition_penalty`` 1 = none (Keskar et al. 2019).

    On-policy training takes ``temperature`` only: the others change the distribution behind the log-probabilities' back.
    """

    max_new_tokens: Count = 24
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Positive = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Positive = 1.0
    batch_size: Count = 64

    @model_validator(mode="after")
    def _minimum_is_below_maximum(self) -> Generation:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        return self


class Training(Section):
    """What every training stage shares; the names are those of Hugging Face. ``batch_size`` is global, over all workers.

    ``adapter``: ``none`` trains all weights, ``lora`` low-rank additions to them, ``prompt`` a soft prompt of ``prompt_length``
    vectors, which begins as noise (``random``), as tokens drawn from the vocabulary, or as the tokens of ``prompt_text``.
    """

    adapter: Literal["none", "lora", "prompt"] = "lora"
    lora_r: Count = 16
    lora_alpha: Count = 32
    prompt_length: Count = 16
    prompt_init: Literal["random", "vocabulary", "text"] = "vocabulary"
    prompt_text: str = ""
    precision: Precision = "bf16"
    learning_rate: Positive = 2e-4
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: Fraction = 0.0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Positive = 1.0
    batch_size: Count = 32
    micro_batch_size: Count = 32
    save_steps: Count = 10

    @model_validator(mode="after")
    def _a_prompt_has_its_text(self) -> Self:
        if (self.prompt_init == "text") != bool(self.prompt_text.strip()):
            raise ValueError("prompt_init: text and prompt_text: go together")
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Training:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}")
        return self


class Sft(Training):
    """Supervised fine-tuning on the completion's tokens; ``loss_on: assistant`` adds the earlier answers of a dialogue.

    ``excess_length`` is about rows longer than ``max_length`` tokens (0 = the model's context): ``truncate`` cuts the prompt's
    beginning. ``group_by_length`` puts rows of like length into a batch: less padding, another order. ``packing`` puts
    whole rows behind each other into sequences of up to ``max_length`` tokens, none of which sees another; ``batch_size`` and
    ``micro_batch_size`` then count sequences.
    """

    loss_on: Literal["completion", "assistant"] = "completion"
    excess_length: ExcessLength = "raise"
    group_by_length: bool = False
    packing: bool = False
    max_length: Annotated[int, Field(ge=0)] = 0
    learning_rate: Positive = 1e-3
    warmup_ratio: Fraction = 0.05
    num_train_epochs: Count = 1

    @model_validator(mode="after")
    def _padding_is_saved_once(self) -> Sft:
        if self.packing and self.group_by_length:
            raise ValueError("packing and group_by_length exclude each other: packed sequences hold no padding")
        return self

    @model_validator(mode="after")
    def _each_row_has_its_prompt(self) -> Sft:
        if self.packing and self.adapter == "prompt":
            raise ValueError(
                "adapter: prompt stands before every row, and packing puts rows behind each other; leave packing out"
            )
        return self


class Reward(Training):
    """A reward model on the SFT model's first ``layers`` layers (0 = all). ``group_by_length`` as in ``sft``.

    ``loss``: ``bradley_terry`` learns pair by pair; a ``margin`` above 0 asks for a difference of that much for every unit of the
    pair's own margin (Touvron et al. 2023, eq. 2; a pair without one asks for 0), and ``center_rewards_coefficient`` draws a
    pair's two scores towards a sum of 0 (Eisenstein et al. 2023). ``all_pairs`` (InstructGPT) and ``plackett_luce`` hold all
    comparisons of a prompt together and score each answer once: ``batch_size`` and ``micro_batch_size`` then count prompts.
    ``regression`` fits the grades of single answers (squared error, in standard deviations of the training grades): it needs
    pairs with grades, and the sizes count answers.

    ``members`` of an ensemble differ in their seed: their adapters' start and the order of the pairs. ``groups`` adds a model
    for each group: ``given`` in the pairs' column, or ``found``, ``clusters`` of them, among annotators (groups, where no
    annotator is named) who choose alike.
    """

    members: Count = 1
    pooling: Literal["mean", "last"] = "mean"
    layers: Annotated[int, Field(ge=0)] = 4
    loss: Literal["bradley_terry", "all_pairs", "plackett_luce", "regression"] = "bradley_terry"
    margin: Annotated[float, Field(ge=0.0)] = 0.0
    center_rewards_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    groups: Literal["none", "given", "found"] = "none"
    clusters: Annotated[int, Field(ge=2)] = 2
    learning_rate: Positive = 3e-3
    warmup_ratio: Fraction = 0.1
    num_train_epochs: Count = 1
    excess_length: ExcessLength = "raise"
    group_by_length: bool = False
    early_stopping_patience: Count = 3
    eval_steps: Count = 10

    @model_validator(mode="after")
    def _margins_are_for_pairs(self) -> Reward:
        for name in ("margin", "center_rewards_coefficient"):
            if getattr(self, name) and self.loss != "bradley_terry":
                raise ValueError(f"{name} {getattr(self, name)} belongs to loss: bradley_terry; loss {self.loss} takes none")
        return self
