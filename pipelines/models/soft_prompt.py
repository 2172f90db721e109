"""Soft prompts: vectors that a model reads before every prompt, trained while its weights stay as they are.

They are hooked to the trunk and hide there: whoever runs the model, with a cache or without, gets a state for each token that it
gave and for no other. Their start and their files are PEFT's, which gives the same logits.

Paper: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2 ([P; X], P of shape [N, H]).
Axes: B rows, T tokens, N virtual tokens, H hidden units.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.config import Training
from pipelines.data.tables import write_json
from pipelines.errors import ConfigurationError, DataError

NAME = "soft_prompt"
"""The module on the trunk, and the folder beside a model's weights that plain transformers takes no notice of."""
WEIGHTS, CONFIG, TENSOR = "adapter_model.safetensors", "adapter_config.json", "prompt_embeddings"
KIND = "PROMPT_TUNING"


class SoftPrompt(nn.Module):
    """The vectors ``weight`` [N, H], and what they do to the trunk's inputs and outputs."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def before(self, trunk: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the vectors before a sequence that begins; one that goes on has them in its cache."""
        mask, positions, past = (kwargs.get(name) for name in ("attention_mask", "position_ids", "past_key_values"))
        count = len(self.weight)
        if mask is not None:
            if mask.ndim != 2:
                raise ConfigurationError("a soft prompt cannot stand before packed rows; leave packing out, or take adapter lora")
            mask = torch.cat([mask.new_ones(len(mask), count), mask], dim=1)
        if positions is not None:
            positions = positions + count
        if past is None or past.get_seq_length() == 0:
            ids, embedded = kwargs.pop("input_ids", None), kwargs.get("inputs_embeds")
            embedded = trunk.get_input_embeddings()(ids) if embedded is None else embedded
            first = self.weight.to(embedded.dtype).expand(len(embedded), -1, -1)
            kwargs["inputs_embeds"] = torch.cat([first, embedded], dim=1)
            if positions is not None:
                own = torch.arange(count, device=positions.device).expand(len(positions), -1)
                positions = torch.cat([own, positions], dim=1)
        return args, kwargs | {"attention_mask": mask, "position_ids": positions}

    def after(self, trunk: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Keep their states to itself."""
        if kwargs.get("inputs_embeds") is not None:
            output.last_hidden_state = output.last_hidden_state[:, len(self.weight) :]
        return output


def trunk_of(model: Any) -> Any:
    """The model without output layer, out of a LoRA's wrapper; a trunk is its own."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()


def prompt_of(model: Any) -> SoftPrompt | None:
    """The model's soft prompt; None where it has none."""
    return getattr(trunk_of(model), NAME, None)


def attach(model: Any, weight: torch.Tensor) -> SoftPrompt:
    """Give a model the soft prompt ``weight`` [N, H]; one that it had gives way."""
    trunk = trunk_of(model)
    weight = weight.to(next(trunk.parameters()).device)
    known = prompt_of(model)
    if known is not None:
        known.weight = nn.Parameter(weight)
        return known
    prompt = SoftPrompt(weight)
    setattr(trunk, NAME, prompt)
    trunk.register_forward_pre_hook(prompt.before, with_kwargs=True)
    trunk.register_forward_hook(prompt.after, with_kwargs=True)
    return prompt


def add_prompt(model: Any, training: Training) -> Any:
    """Freeze the model and train a soft prompt: a fresh one as ``training`` asks, or on from the one that the model has."""
    from peft import PromptEmbedding

    known = prompt_of(model)
    if known is None:
        words = trunk_of(model).get_input_embeddings()
        fresh = PromptEmbedding(peft_config(model, training.prompt_length, training), words)
        known = attach(model, fresh.embedding.weight.detach().clone())
    elif len(known.weight) != training.prompt_length:
        raise ConfigurationError(
            f"prompt_length {training.prompt_length}: the model has a soft prompt of {len(known.weight)} vectors, which goes on"
            " being trained; write the same length"
        )
    model.requires_grad_(False)
    known.weight.requires_grad_(True)
    return model


def peft_config(model: Any, length: int, training: Training | None = None) -> Any:
    """PEFT's description of a soft prompt of this model."""
    from peft import PromptTuningConfig

    kinds = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "TEXT"}
    start: dict[str, Any] = {"prompt_tuning_init": "RANDOM"}
    if training is not None:
        start = {"prompt_tuning_init": kinds[training.prompt_init]}
        if training.prompt_init == "text":
            place = trunk_of(model).name_or_path
            start |= {"prompt_tuning_init_text": training.prompt_text, "tokenizer_name_or_path": place}
    config = trunk_of(model).config
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        token_dim=config.hidden_size,
        num_transformer_submodules=1,
        num_attention_heads=config.num_attention_heads,
        num_layers=config.num_hidden_layers,
        **start,
    )


def room(model: Any) -> int:
    """How many tokens the model can be given: its context, less its soft prompt."""
    known = prompt_of(model)
    context = int(getattr(trunk_of(model).config, "max_position_embeddings", 2**30))
    return context - (len(known.weight) if known is not None else 0)


def write(model: Any, folder: Path, base: str = "") -> None:
    """The soft prompt's files, as PEFT writes them; ``base`` is the relative path to the model that it stands before."""
    from safetensors.torch import save_file

    known = prompt_of(model)
    if known is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file({TENSOR: known.weight.detach().float().cpu().contiguous()}, folder / WEIGHTS)
    content = peft_config(model, len(known.weight)).to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    plain = {key: getattr(value, "value", value) for key, value in content.items()}
    write_json(folder / CONFIG, plain)


def read(model: Any, folder: Path) -> None:
    """Give the model the soft prompt of ``folder``, if there is one there. Raises DataError where it does not fit."""
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        return
    weight = load_file(folder / WEIGHTS)[TENSOR]
    width = trunk_of(model).config.hidden_size
    if weight.shape[1] != width:
        raise DataError(f"{folder}: a soft prompt of width {weight.shape[1]}, the model has {width}; train it again")
    attach(model, weight).requires_grad_(False)


def is_written(folder: Path) -> bool:
    """Whether what lies in ``folder`` is a soft prompt."""
    path = folder / CONFIG
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("peft_type") == KIND


def trains_prompt(model: Any) -> bool:
    """Whether a soft prompt, and nothing else of the model, is what was trained."""
    trained = [name for name, weight in trunk_of(model).named_parameters() if weight.requires_grad]
    return trained == [f"{NAME}.weight"]


@contextmanager
def without(model: Any) -> Iterator[None]:
    """The model as if it had no soft prompt, for as long as this lasts: for writing its weights."""
    trunk, known = trunk_of(model), prompt_of(model)
    if known is not None:
        delattr(trunk, NAME)
    try:
        yield
    finally:
        if known is not None:
            setattr(trunk, NAME, known)
