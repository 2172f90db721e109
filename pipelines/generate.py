"""``python -m pipelines generate``: try a model; its answer is written token by token, as it is sampled.

Reads     the model that ``--policy`` names: artifacts/policies/NAME/model; ``sft``: artifacts/sft/model; ``base``: artifacts/base
Writes    nothing
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipelines import config
from pipelines.errors import ConfigurationError, DataError


class Parser(argparse.ArgumentParser):
    """Argument errors are errors of the configuration: exit code 3, one line."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong."""
        self.exit(ConfigurationError.code, f"error: {message}\n")


def main(arguments: Sequence[str], root: Path) -> None:
    """Answer one prompt on stdout."""
    parser = Parser(prog="python -m pipelines generate")
    parser.add_argument("--policy", default="sft")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("prompt")
    options = parser.parse_args(arguments)
    if options.max_new_tokens < 1 or not 0.0 <= options.temperature < float("inf"):
        parser.error("--max-new-tokens must be at least 1, --temperature at least 0")
    params = config.load()
    folder = folder_of(root, options.policy, params)
    for piece in answer(
        folder, options.prompt, options.max_new_tokens, options.temperature, options.seed, params.runtime.threads
    ):
        print(piece, end="", flush=True)
    print()


def folder_of(root: Path, name: str, params: config.Params) -> Path:
    """The model folder of a policy, of ``sft`` or of ``base``. Raises ConfigurationError for an unknown name, DataError for one
    that is not trained yet."""
    folders = {"base": root / "artifacts" / "base", "sft": root / "artifacts" / "sft" / "model"}
    folders |= {policy: root / "artifacts" / "policies" / policy / "model" for policy in params.policies}
    if name not in folders:
        raise ConfigurationError(f"--policy {name}: params.yaml has no such policy; there are: {', '.join(sorted(folders))}")
    if not (folders[name] / "config.json").exists():
        raise DataError(f"{folders[name].relative_to(root)}: not there yet; `prefloop run` trains it")
    return folders[name]


def answer(folder: Path, prompt: str, max_new_tokens: int, temperature: float, seed: int, threads: int) -> Iterator[str]:
    """The answer's text in pieces. The prompt and the answer are shown as the model sees them: special tokens left out."""
    import torch

    from pipelines.data.tokens import decode, encode_prompt
    from pipelines.models.loading import load_causal_lm, load_tokenizer
    from pipelines.models.soft_prompt import room

    torch.set_num_threads(threads)
    tokenizer, model = load_tokenizer(folder), load_causal_lm(folder)
    asked = encode_prompt(tokenizer, prompt)
    left = room(model) - len(asked)
    if not asked or left < 1:
        raise DataError(f"the prompt has {len(asked)} tokens; it needs at least 1 and at most {left + len(asked) - 1}")
    ids: list[int] = []
    shown = ""
    for token in sampled(model, asked, min(max_new_tokens, left), temperature, seed):
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
        text = decode(tokenizer, ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character whose bytes are not all there yet
            yield text[len(shown) :]
            shown = text
    yield decode(tokenizer, ids)[len(shown) :]


def sampled(model: Any, prompt: Sequence[int], count: int, temperature: float, seed: int) -> Iterator[int]:
    """Up to ``count`` tokens drawn one by one by inverse CDF; with temperature 0 the most likely ones."""
    import torch
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(seed)
    cache, ids = DynamicCache(config=model.config), torch.tensor([list(prompt)])
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()
            if temperature == 0.0:
                token = int(logits.argmax())
            else:
                below = torch.softmax(logits / temperature, dim=-1).double().cumsum(-1)
                drawn = torch.rand(1, generator=generator, dtype=torch.float64) * below[-1]
                token = min(int(torch.searchsorted(below, drawn, right=True)), len(below) - 1)
            yield token
            ids = torch.tensor([[token]])
