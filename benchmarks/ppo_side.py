"""One side of benchmarks/ppo.py, in a process of its own: ``ppo_side.py ours|peer SETTINGS.json``; prints one JSON line.

Both train ``steps`` batches on the models and prompts of the settings' folder. The first step warms up and is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def ours(settings: dict[str, Any], place: Path) -> dict[str, Any]:
    """Our trainer's own loop, each step timed from outside; the rest is what its phases do not account for."""
    from pipelines.config import Ppo
    from pipelines.context import Worker, make_deterministic
    from pipelines.journal import Journal
    from pipelines.training.ppo import Job, begin, one_step
    from pipelines.training.rewards import LearnedReward, Term

    make_deterministic(1, settings["threads"])
    params = Ppo.model_validate(settings["ours"])
    learned = LearnedReward(place / "reward", place / "model", settings["batch"], params.precision)
    journal = place / "journal.jsonl"
    journal.unlink(missing_ok=True)
    job = Job(place / "model", settings["prompts"], (Term("model", 1.0, learned),), params, 1, place / "out", place / "scratch")
    run = begin(job, Worker(0, 1, "cpu", Journal(journal)))
    seconds = []
    for step in range(1, settings["steps"] + 1):
        started = time.perf_counter()
        one_step(run, step)
        seconds.append(time.perf_counter() - started)
    lines = [json.loads(line)["timings"] for line in journal.read_text().splitlines()]
    phases = [{name: line[f"seconds/{name}"] for name in ("rollout", "score", "update")} for line in lines if line]
    return {"seconds": seconds, "phases": phases, "peak_rss_bytes": peak(), "floor": floor(settings, place)}


def floor(settings: dict[str, Any], place: Path) -> dict[str, Any]:
    """Seconds that a step's matrix products alone would take at the rate that this machine reaches on one of their shape.

    Operations: 2 a weight and token forwards, 4 backwards (2 where the weights are frozen, LoRA). The head reads the answers
    alone. Sampling also reads all weights once a token: it takes the longer of its products and of that reading.
    """
    import torch

    from pipelines.models.loading import load_causal_lm

    model, ours_ = load_causal_lm(place / "model"), settings["ours"]
    half, lora, shared = ours_["precision"] == "bf16", ours_["adapter"] == "lora", ours_["critic"] == "shared"
    kind = torch.bfloat16 if half else torch.float32
    trunk = sum(parameter.numel() for parameter in model.model.layers.parameters())
    head = model.get_input_embeddings().weight.numel()
    answers = settings["batch"] * settings["response"]
    tokens = settings["batch"] * len(settings["prompts"][0]) + answers
    width, inner = model.config.hidden_size, model.config.intermediate_size
    rows, weights = torch.randn(tokens, width, dtype=kind), torch.randn(width, inner, dtype=kind)
    operations = 2.0 * tokens * width * inner / best(lambda: rows @ weights)
    block = torch.empty(2**26)
    bandwidth = block.numel() * 4 / best(lambda: block.sum())
    once = 2.0 * (trunk * tokens + head * answers) / operations  # all of one forward pass
    back = (1.0 if lora else 2.0) * once
    reading = settings["response"] * (trunk + head) * (2 if half else 4) / bandwidth
    critic = 0.0 if shared else 2.0 * trunk * tokens / operations
    return {
        "operations_per_second": operations, "bytes_per_second": bandwidth,
        "seconds": {
            "rollout": max(once, reading),
            "score": 2 * once + 2.0 * trunk * tokens / operations + critic,  # policy, reference, reward model, critic
            "update": settings["epochs"] * (once + back + 3 * critic),
        },
    }  # fmt: skip


def peak() -> int:
    """The largest memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def best(work: Callable[[], Any], repeats: int = 20) -> float:
    """The shortest of some repeats, in seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def peer(settings: dict[str, Any], place: Path) -> dict[str, Any]:
    """TRL's PPOTrainer, unmodified; a callback reads the clock at the end of every step."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(place / "model", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32) for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(place / "peer_reward", dtype=torch.float32, num_labels=1)
        for _ in range(2)
    )
    batch = settings["batch"]
    args = PPOConfig(
        output_dir=str(place / "peer_out"), use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=batch, num_mini_batches=1, num_ppo_epochs=settings["epochs"],
        total_episodes=batch * settings["steps"], response_length=settings["response"], stop_token="eos",
        num_sample_generations=0, local_rollout_forward_batch_size=batch, missing_eos_penalty=1.0, learning_rate=1e-5,
    )  # fmt: skip
    prompts = Dataset.from_dict({"input_ids": settings["prompts"]})
    moments = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

    trainer = PPOTrainer(
        args, tokenizer, policy, reference, reward, prompts, value, eval_dataset=prompts, callbacks=[Clock()]
    )  # fmt: skip
    moments[0] = time.perf_counter()
    trainer.train()
    return {"seconds": [after - before for before, after in zip(moments, moments[1:], strict=False)]}


if __name__ == "__main__":
    side, file = sys.argv[1], Path(sys.argv[2])
    result = {"ours": ours, "peer": peer}[side](json.loads(file.read_text()), file.parent)
    print("RESULT " + json.dumps({"peak_rss_bytes": peak()} | result))
