"""What answers prompts during training: the policy itself (``hf``), or vLLM with the policy's weights (``vllm``).

An engine's answers carry its own log-probabilities. The trainer never trains on those: it reads the answers again in the
update's own pass and makes up for the difference by truncated importance weights (Yao et al. 2025).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.config import Ppo
from pipelines.errors import EnvironmentFault
from pipelines.models import soft_prompt
from pipelines.models.adapters import merged_weights
from pipelines.models.generation import Answers, sample

Engine = Callable[[Any, Sequence[list[int]], Sequence[int]], Answers]
"""The policy as it is now, prompts, a seed a prompt -> answers."""

LIMIT = 0.1
"""Nats a token: an engine whose log-probabilities are further from the trainer's on average is reported. bf16 alone is below."""
SHARE = 0.3
"""Of the GPU's memory: vLLM's weights and cache; the trainer lives beside it."""


def open_engine(params: Ppo, folder: Path, tokenizer: Any, longest: int, device: str) -> Engine:
    """The engine that ``params.engine`` names; ``folder`` has the model, ``longest`` is the longest prompt in tokens.

    Raises EnvironmentFault where the engine cannot run.
    """
    return ENGINES[params.engine](params, folder, tokenizer, longest, device)


def hf(params: Ppo, folder: Path, tokenizer: Any, longest: int, device: str) -> Engine:
    """The policy answers by itself, on a CPU or a GPU."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def answer(policy: Any, prompts: Sequence[list[int]], seeds: Sequence[int]) -> Answers:
        return sample(policy, eos, pad, prompts, params.generation, seeds, params.precision)

    return answer


def vllm(params: Ppo, folder: Path, tokenizer: Any, longest: int, device: str) -> Engine:
    """vLLM in this process, on the worker's own GPU, given the policy's weights before each batch."""
    if torch.device(device).type != "cuda":
        raise EnvironmentFault(
            "engine: vllm needs a GPU, and this worker has none; set runtime.gpus_per_worker: 1, or engine: hf"
        )
    if importlib.util.find_spec("vllm") is None:
        raise EnvironmentFault("engine: vllm needs the package vllm (pip install 'trl[vllm]' takes one that fits), or engine: hf")
    if (folder / soft_prompt.NAME).is_dir():
        raise EnvironmentFault("engine: vllm knows no soft prompt, and the SFT model has one; take engine: hf")
    # One process and one scheduler, so that the same prompts and seeds are batched in the same way; and a worker of a group of
    # trainers stays an engine of its own (external_launcher), which reads these.
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"LOCAL_RANK": str(torch.device(device).index or 0)}
    from trl.trainer.utils import ensure_master_addr_port
    from vllm import LLM, SamplingParams

    ensure_master_addr_port()
    generation, eos = params.generation, tokenizer.eos_token_id
    engine = LLM(
        model=str(folder),
        dtype="bfloat16" if params.precision == "bf16" else "float32",
        max_model_len=longest + generation.max_new_tokens,
        gpu_memory_utilization=SHARE,
        distributed_executor_backend="external_launcher",
        logprobs_mode="processed_logprobs",  # after the temperature: those of the distribution that is drawn from
        skip_tokenizer_init=True,
    )

    def answer(policy: Any, prompts: Sequence[list[int]], seeds: Sequence[int]) -> Answers:
        engine.apply_model(lambda model: model.load_weights(merged_weights(policy)))
        engine.reset_prefix_cache()  # it holds keys and values of the weights before
        settings = [
            SamplingParams(
                temperature=generation.temperature,
                max_tokens=generation.max_new_tokens,
                logprobs=0,  # of the token that was drawn, and no other
                seed=seed,
                stop_token_ids=[eos],
                ignore_eos=True,  # the model's own list may have more; an answer ends at the tokenizer's EOS
                detokenize=False,
            )
            for seed in seeds
        ]
        done = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        return collected((output.outputs[0] for output in done), eos)

    return answer


def collected(outputs: Iterator[Any], eos_token_id: int) -> Answers:
    """vLLM's completions (``token_ids`` [T], ``logprobs`` [T] of {token: its Logprob}) as answers."""
    tokens: list[list[int]] = []
    logprobs: list[list[float]] = []
    for output in outputs:
        tokens.append(list(output.token_ids))
        logprobs.append([at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)])
    return Answers(tokens, logprobs, [answer[-1] == eos_token_id for answer in tokens])


ENGINES: dict[str, Callable[[Ppo, Path, Any, int, str], Engine]] = {"hf": hf, "vllm": vllm}
