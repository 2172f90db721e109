"""The stages, in the order in which the data flows. Light: importing it loads no stage.

dvc.yaml owns the graph (what each reads and writes); this table says what each one is and which number to watch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One row of the table; ``module`` is ``pipelines.stages.<module>`` and has ``run(ctx)``."""

    module: str
    title: str
    key_metrics: tuple[str, ...]
    """The number to watch: the first of these that the stage reports."""
    resumable: bool
    torch: bool = True
    """Whether it computes with torch, which takes seconds to import."""


STAGES: dict[str, Stage] = {
    "prepare": Stage("prepare", "demonstrations, prompts and preferences", ("demonstrations",), False, torch=False),
    "base": Stage("base", "the base model as safetensors", ("parameters",), True),
    "sft": Stage("sft", "supervised fine-tuning", ("eval_loss",), True),
    "preferences": Stage("preferences", "answers of the SFT model, labelled by the judge", ("pairs",), False),
    "reward": Stage("reward", "Bradley-Terry reward model", ("pair_accuracy",), True),
    "policy": Stage(
        "policy",
        "a policy that learns from the preferences",
        ("objective/scores", "eval_rewards/accuracies", "eval_rewards/margins", "best_score"),
        True,
    ),
    "evaluate_sft": Stage("evaluate", "the SFT model on held-out prompts", ("gold_mean",), False),
    "evaluate": Stage("evaluate", "a policy on held-out prompts, against the SFT model", ("win_rate",), False),
    "report": Stage("report", "one page that shows it all", ("policies",), False, False),
}


def stage_of(name: str) -> Stage:
    """The row of a stage as dvc.yaml names it (``policy@ppo`` -> ``policy``); KeyError for an unknown one."""
    return STAGES[name.partition("@")[0]]
