"""Adapters: put on, saved without traces of the machine; LoRA is merged into a plain model, a soft prompt cannot be.

Paper: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (eq. 3: h = W0 x + (alpha / r) B A x).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.config import Training
from pipelines.data.tables import write_json
from pipelines.errors import DataError
from pipelines.models import soft_prompt

if TYPE_CHECKING:
    from peft import LoraConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def add_adapter(model: Any, training: Training, name: str = "default") -> Any:
    """Put a fresh LoRA adapter on every linear layer, or a soft prompt before every row, and freeze the rest.

    Adapter ``none`` returns the model as it is, all of it trained.

    A causal model keeps its output layer unadapted (trainers multiply by its weight directly). A model that already
    carries adapters gets one more, which becomes the active one. A is drawn from torch's generator, B is 0: seed first.
    """
    if training.adapter == "none":
        return model.requires_grad_(True)
    if training.adapter == "prompt":
        return soft_prompt.add_prompt(model, training)
    from peft import PeftModel, get_peft_model

    config = lora_config(model, training)
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
        model.set_adapter(name)
        return model
    return get_peft_model(model, config, adapter_name=name)


def lora_config(model: Any, training: Training) -> LoraConfig:
    """The adapter that ``training`` asks for: on every linear layer but the output layer, without dropout."""
    from peft import LoraConfig

    linear = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not _output_layer(model) and "lora_" not in path
    } - {"base_layer"}
    adapted = set().union(*(c.target_modules for c in model.peft_config.values())) if is_adapted(model) else set()
    return LoraConfig(
        r=training.lora_r,
        lora_alpha=training.lora_alpha,
        lora_dropout=0.0,
        target_modules=sorted(linear | adapted),
        task_type="CAUSAL_LM" if _output_layer(model) is not None else "FEATURE_EXTRACTION",
    )


def save_adapter(model: Any, folder: Path, base: str = "", name: str = "default") -> None:
    """Write the adapter's weights and configuration (peft's file names, keys and sets sorted).

    ``base`` is the relative path from ``folder`` to the model that the adapter sits on.
    """
    if not is_adapted(model):
        soft_prompt.write(model, folder, base)
        return
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({key: weights[key].detach().cpu().contiguous() for key in sorted(weights)}, folder / WEIGHTS)
    content = model.peft_config[name].to_dict()
    content |= {"base_model_name_or_path": base, "inference_mode": True}
    write_json(folder / CONFIG, _plain(content))


def load_adapter(model: Any, folder: Path) -> Any:
    """Put a saved adapter on ``model``: frozen, its tensors' names and shapes checked."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder}: no adapter here ({CONFIG} is missing); run the stage that writes it again")
    if soft_prompt.is_written(folder):
        soft_prompt.read(model, folder)
        return model.requires_grad_(False).eval()
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config = LoraConfig(**content | {"base_model_name_or_path": getattr(model, "name_or_path", "")})
    adapted = get_peft_model(model, config)
    result: Any = set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        wrong = (missing + list(result.unexpected_keys))[0]
        raise DataError(f"{folder}: the adapter does not fit the model (first tensor at fault: {wrong}); train it again")
    return adapted.requires_grad_(False).eval()


def merge(model: Any) -> Any:
    """The plain model with its adapter added to the weights (W0 + (alpha / r) B A); a plain model comes back as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


@torch.no_grad()
def merged_weights(model: Any, name: str = "default") -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that ``merge`` would give, one by one under the plain model's names; the model itself is left alone."""
    plain = model.get_base_model() if is_adapted(model) else model
    adapted = {path: module for path, module in plain.named_modules() if hasattr(module, "get_delta_weight")}
    for path, weight in plain.named_parameters():
        owner, _, kind = path.rpartition(".")
        module = adapted.get(owner.removesuffix(".base_layer"))
        if "lora_" in path:
            continue
        if module is not None and kind == "weight":
            weight = weight.float() + module.get_delta_weight(name)
        yield path.replace(".base_layer.", "."), weight


def is_adapted(model: Any) -> bool:
    """Whether the model carries a LoRA adapter."""
    return hasattr(model, "peft_config")


def _output_layer(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _plain(value: Any) -> Any:
    """Sets (whose order differs from process to process) as sorted lists, enumerations as their values."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)
