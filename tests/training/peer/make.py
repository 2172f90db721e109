"""One unmodified optimiser step of TRL 1.12.0's PPOTrainer on fixed rollouts, recorded: ``python tests/training/peer/make.py``.

Makes an environment of its own (TRL 1.12.0 with everything else as in constraints.txt), runs itself in it, and writes
``step.safetensors`` beside itself: the models, the rollouts, and what TRL made of them. Everything is float64. Nothing of
TRL is changed: its generate is answered from the recorded tokens, and its intermediate results are read as they pass.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[2]
TRL = "1.12.0"
EOS, PAD = 1, 0
SHAPE = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
SETTINGS = {
    "kl_coef": 0.3,
    "cliprange": 0.2,
    "cliprange_value": 0.2,
    "vf_coef": 0.1,
    "gamma": 0.97,
    "lam": 0.9,
    "temperature": 0.7,
    "missing_eos_penalty": 0.5,
    "learning_rate": 1e-3,
}
PROMPTS = [[4, 5, 6], [5, 3], [6, 7, 8, 9], [7], [8, 9, 2]]
ANSWERS = {
    # all as long as can be; two end with EOS there
    "full": [[7, 8, 2, 9, 1], [3, 3, 4, 5, 6], [10, 11, 2, 3, 1], [9, 8, 7, 6, 5], [2, 4, 6, 8, 10]],
    # three end before
    "early": [[7, 1], [3, 3, 4, 5, 6], [10, 11, 2, 1], [1], [2, 4, 6, 8, 1]],
}


def main() -> None:
    """Make the environment and run this file in it."""
    sys.path.insert(0, str(PROJECT / "benchmarks"))
    from peer import environment

    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder))
        subprocess.run([str(python), str(Path(__file__).resolve()), "--inside", folder], check=True, cwd=folder)


def inside(place: Path) -> None:
    """One step for each set of answers, all that is needed to compare it, in one file."""
    import torch
    import transformers
    import trl
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    if trl.__version__ != TRL:
        raise SystemExit(f"TRL {trl.__version__} is installed, {TRL} is wanted")
    torch.set_default_dtype(torch.float64)
    tensors: dict[str, torch.Tensor] = {}
    for case, answers in ANSWERS.items():
        torch.manual_seed(7)
        policy, reference = (LlamaForCausalLM(LlamaConfig(**SHAPE)) for _ in range(2))
        critic, reward = (LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1)) for _ in range(2))
        with torch.no_grad():  # a reference near the policy, as in training
            for ours, theirs in zip(reference.parameters(), policy.parameters(), strict=True):
                ours.copy_(theirs + 0.05 * ours)
        if case == "full":
            for name, model in (("policy", policy), ("reference", reference), ("critic", critic)):
                tensors |= {f"{name}.{key}": value.clone() for key, value in model.state_dict().items()}
        found = one_step(place, policy, reference, critic, reward, answers)
        tensors |= {f"{case}.{key}": value for key, value in found.items()}
    facts = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    inputs = {"made_with": facts, "shape": SHAPE, "settings": SETTINGS, "prompts": PROMPTS, "answers": ANSWERS}
    metadata = {name: json.dumps(value) for name, value in inputs.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / "step.safetensors", metadata)


def one_step(place: Path, policy: Any, reference: Any, critic: Any, reward: Any, answers: list[list[int]]) -> dict[str, Any]:
    """Train one batch with TRL; returns its intermediate results, rows in the order of PROMPTS, and the gradients."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{token}": token for token in range(2, SHAPE["vocab_size"])}  # type: ignore[call-overload]
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", padding_side="left")
    longest = max(map(len, answers))
    args = PPOConfig(
        output_dir=str(place / "out"), use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=len(PROMPTS), num_mini_batches=1, num_ppo_epochs=1, total_episodes=len(PROMPTS),
        response_length=longest, stop_token="eos", num_sample_generations=0, lr_scheduler_type="constant", **SETTINGS,
    )  # fmt: skip
    trainer = PPOTrainer(
        args, tokenizer, policy, reference, reward, Dataset.from_dict({"input_ids": PROMPTS}), critic,
        eval_dataset=Dataset.from_dict({"input_ids": PROMPTS}),
    )  # fmt: skip
    by_prompt = dict(zip(map(tuple, PROMPTS), answers, strict=True))
    seen: dict[str, Any] = {}

    def recorded(model: Any, queries: Any, _: int, pad: int, config: Any) -> tuple[Any, Any]:
        prompts = [tuple(token for token in row if token != PAD) for row in queries.tolist()]
        seen["order"] = [list(map(tuple, PROMPTS)).index(prompt) for prompt in prompts]
        rows = torch.tensor([by_prompt[prompt] + [PAD] * (longest - len(by_prompt[prompt])) for prompt in prompts])
        whole = torch.cat([queries, rows], 1)
        logits = ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1]
        return whole, logits / (args.temperature + 1e-7)

    def scored(model: Any, *others: Any) -> Any:
        result = get_reward(model, *others)
        if model is trainer.reward_model:
            seen["scores"] = result[1].clone()
        return result

    def whitened(values: Any, mask: Any, shift_mean: bool = True) -> Any:
        around = sys._getframe(1).f_locals
        seen.update({name: around[name].clone() for name in ("rewards", "values", "returns", "logprobs", "ref_logprobs")})
        seen["raw_advantages"] = values.clone()
        seen["advantages"] = masked_whiten(values, mask, shift_mean) * mask
        return masked_whiten(values, mask, shift_mean)

    def gradients(*_: Any) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        named = {
            **dict(model.policy.named_parameters(prefix="policy")),
            **dict(model.value_model.named_parameters(prefix="critic")),
        }
        seen["gradients"] = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}

    get_reward, masked_whiten, generation = ppo_trainer.get_reward, ppo_trainer.masked_whiten, ppo_trainer.batch_generation
    ppo_trainer.get_reward, ppo_trainer.masked_whiten, ppo_trainer.batch_generation = scored, whitened, recorded
    trainer.optimizer.optimizer.register_step_pre_hook(gradients)
    try:
        trainer.train()
    finally:
        ppo_trainer.get_reward, ppo_trainer.masked_whiten, ppo_trainer.batch_generation = get_reward, masked_whiten, generation
    place_of = torch.tensor(seen.pop("order")).argsort()
    gradient = {f"gradient.{name}": value for name, value in seen.pop("gradients").items()}
    logged = next(row for row in trainer.state.log_history if "loss/policy_avg" in row)
    losses = {name: torch.tensor(logged[f"loss/{name}_avg"]) for name in ("policy", "value")}
    return {name: value[place_of] for name, value in seen.items()} | gradient | {f"loss.{k}": v for k, v in losses.items()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]))
    else:
        main()
