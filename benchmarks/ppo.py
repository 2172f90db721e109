"""Our PPO against TRL 1.12.0's PPOTrainer, unmodified: episodes per second and peak memory, both sides in one run.

    python benchmarks/ppo.py [--repeats 3] [--only llama smollm2 recommended]

The same policy, reward model, prompts, response length, batch and epochs, on two threads. ``llama`` and ``smollm2`` are like
for like (full fine-tuning, float32, separate critic), ``recommended`` is ours as the recipe has it (LoRA, bf16, the value
head on the policy's trunk) against the same peer. The peer's environment is made below the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, facts, save
from peer import environment

sys.path.insert(0, str(ROOT))

FULL = {"adapter": "none", "precision": "float32", "critic": "reward"}
RECOMMENDED = {"adapter": "lora", "precision": "bf16", "critic": "shared"}
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model": "llama", "prompt": 12, "response": 32, "batch": 32, "steps": 6, "ours": FULL},
    "smollm2": {"model": "smollm2", "prompt": 12, "response": 24, "batch": 16, "steps": 4, "ours": FULL},
    "recommended": {"model": "smollm2", "prompt": 12, "response": 24, "batch": 16, "steps": 4, "ours": RECOMMENDED},
}


def main() -> None:
    """Measure each case ``repeats`` times, the sides in turn; record medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pythons = {"ours": Path(sys.executable), "peer": environment(place / "environment")}
        results = {name: measure(name, CASES[name], place / name, pythons, options.repeats) for name in options.only}
    command = f"python benchmarks/ppo.py --repeats {options.repeats} --only {' '.join(options.only)}"
    save("ppo", {**facts(command), "peer": "TRL 1.12.0", "cases": results})


def measure(name: str, case: dict[str, Any], place: Path, pythons: dict[str, Path], repeats: int) -> dict[str, Any]:
    """All repeats of one case: ``{"ours": [run, ...], "peer": [...], "speed": ratio of medians, "memory": ratio}``."""
    prepare(case, place)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for repeat in range(repeats):
        for side in sorted(runs, reverse=bool(repeat % 2)):
            runs[side].append(one(side, pythons[side], place))
            print(f"{name} {side}: {rate(runs[side][-1], case):.2f} episodes/s,"
                  f" {runs[side][-1]['peak_rss_bytes'] / 1e9:.2f} GB", flush=True)  # fmt: skip
    rates = {side: statistics.median(rate(run, case) for run in found) for side, found in runs.items()}
    memory = {side: statistics.median(run["peak_rss_bytes"] for run in found) for side, found in runs.items()}
    facts_of_case = {key: case[key] for key in ("prompt", "response", "batch", "steps")}
    return {**facts_of_case, "runs": runs, "episodes_per_second": rates, "peak_rss_bytes": memory,
            "speed": rates["ours"] / rates["peer"], "memory": memory["ours"] / memory["peer"]}  # fmt: skip


def rate(run: dict[str, Any], case: dict[str, Any]) -> float:
    """Episodes per second: the median step after the first."""
    return case["batch"] / statistics.median(run["seconds"][1:])


def one(side: str, python: Path, place: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [str(python), str(ROOT / "benchmarks" / "ppo_side.py"), side, str(place / "settings.json")]
    environment_ = {**os.environ, "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment_, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not found:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(found[-1].removeprefix("RESULT "))


def prepare(case: dict[str, Any], place: Path) -> None:
    """The models in both sides' formats, the same weights in both, and random prompts of one length."""
    import torch
    from transformers import LlamaForSequenceClassification

    from pipelines.models.loading import load_causal_lm
    from pipelines.models.reward import new_reward, save_reward

    place.mkdir(parents=True)
    torch.manual_seed(1)
    make_model(case["model"], place / "model")
    reward = new_reward(place / "model", "last")
    torch.nn.init.normal_(reward.head.weight, std=0.02)
    save_reward(reward, place / "reward")
    config = load_causal_lm(place / "model").config
    config.num_labels = 1
    theirs = LlamaForSequenceClassification(config)
    theirs.model.load_state_dict(reward.trunk.state_dict())
    theirs.score.weight.data.copy_(reward.head.weight.data)
    theirs.save_pretrained(place / "peer_reward")
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(10, config.vocab_size, (case["batch"] * case["steps"], case["prompt"]), generator=generator).tolist()
    ours = {
        "method": "ppo", "learning_rate": 1e-5, "steps": case["steps"], "batch_size": case["batch"],
        "mini_batch_size": case["batch"], "micro_batch_size": case["batch"], "ppo_epochs": 2,
        "generation": {"max_new_tokens": case["response"], "batch_size": case["batch"]}, **case["ours"],
    }  # fmt: skip
    shared = {key: case[key] for key in ("batch", "steps", "response")}
    (place / "settings.json").write_text(json.dumps({**shared, "epochs": 2, "threads": 2, "prompts": prompts, "ours": ours}))


def make_model(kind: str, folder: Path) -> None:
    """SmolLM2 as the base stage makes it, or a Llama of 5.8 M parameters with random weights and a tokenizer of words."""
    from pipelines.models.loading import save_model

    if kind == "smollm2":
        from pipelines.config import Base
        from pipelines.stages.base import from_gguf, settle

        model, tokenizer = from_gguf(Base())
        settle(model, tokenizer, Base())
        save_model(model, tokenizer, folder)
        return
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{token}": token for token in range(2, 4096)}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    shape = {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 688, "num_attention_heads": 8}
    config_ = LlamaConfig(vocab_size=4096, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None,
                          eos_token_id=1, pad_token_id=0, **shape)  # fmt: skip
    save_model(LlamaForCausalLM(config_), tokenizer, folder)


if __name__ == "__main__":
    main()
