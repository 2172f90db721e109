"""Plain transformers folders in and out: safetensors only, no code of strangers, the same bytes for the same weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch

from pipelines.errors import DataError
from pipelines.models import soft_prompt

UNPORTABLE = ("_name_or_path", "_model_name_or_path", "name_or_path", "is_local", "local_files_only")
"""Keys that say where a model was loaded from: they would differ from clone to clone."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; it has a pad token that is not its EOS (the base stage saw to that)."""
    from transformers import AutoTokenizer

    check_folder(folder)
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def vocabulary(tokenizer: Any) -> str:
    """A hash of which token each id stands for, and of EOS: models that agree in it read rows of tokens alike."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load_causal_lm(folder: Path, device: str = "cpu") -> Any:
    """A causal language model: float32 weights, in evaluation mode, every dropout at 0, PyTorch's own attention.

    A soft prompt beside its weights is put on.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    check_folder(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # attention takes its share as a number
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if hasattr(model.config, "attention_dropout"):
        model.config.attention_dropout = 0.0
    soft_prompt.read(model, folder / soft_prompt.NAME)
    model.to(device)
    return model.eval()


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a plain transformers folder: config, safetensors, tokenizer; nothing that tells where or when.

    A soft prompt, which no weight can hold, goes into a folder of its own beside them.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with soft_prompt.without(model):
        model.save_pretrained(str(folder), max_shard_size="100GB")
    tokenizer.save_pretrained(str(folder))
    for file in sorted(folder.glob("*.json")):
        if file.name != "tokenizer.json":
            _make_portable(file)
    for file in folder.iterdir():
        if file.suffix == ".md" or file.name == "training_args.bin":
            file.unlink()
        else:
            file.chmod(0o644)
    soft_prompt.write(model, folder / soft_prompt.NAME)


def autocast(precision: Literal["float32", "bf16"], device: str) -> contextlib.AbstractContextManager:
    """bfloat16 autocast for ``bf16``, nothing for ``float32``. The weights stay float32 in both."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no plain model: no config, weights that are pickles, or code of its own (``auto_map``)."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no model here (config.json is missing); run the stage that writes it, or mend the path")
    scripts = sorted(file.name for file in folder.rglob("*.py"))
    if scripts:
        raise DataError(f"{folder}: holds code ({', '.join(scripts)}), which is never run; use a plain transformers folder")
    for file in sorted(folder.glob("*.json")):
        if file.name in ("config.json", "tokenizer_config.json") and "auto_map" in file.read_text(encoding="utf-8"):
            raise DataError(f"{file}: asks for code of its own (auto_map), which is never run; use a plain transformers folder")
    weights = [file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".pkl")]
    if weights and not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: {weights[0]} is a pickle, which can run code; convert the weights to safetensors first")


def _make_portable(file: Path) -> None:
    """Rewrite a configuration with sorted keys and without the keys that name a place."""
    content = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in UNPORTABLE}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
