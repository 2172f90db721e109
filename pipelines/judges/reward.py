"""A reward model that was kept (a copy of artifacts/reward with its artifacts/sft) as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.config import SavedReward
from pipelines.data.tokens import encode_completions, encode_prompts
from pipelines.judges.asking import Asked, Opinion, Row, located
from pipelines.models.loading import load_tokenizer
from pipelines.models.reward import load_members, score_members


def open_reward(settings: SavedReward, root: Path, device: str) -> Asked:
    """Load every member; the score is their mean. An answer counts as one that ended by itself: its text does not tell."""
    folder = located(settings.folder, "", root, "preferences.judge.reward")
    sft = folder / "sft" / "model"
    tokenizer, members = load_tokenizer(sft), load_members(folder / "reward", sft, device)

    def asked(rows: Sequence[Row]) -> list[Opinion]:
        prompts = encode_prompts(tokenizer, [prompt for prompt, _ in rows])
        answers = encode_completions(tokenizer, [answer for _, answer in rows], [True] * len(rows))
        scores = score_members(members, prompts, answers, settings.batch_size, settings.precision).mean(0)
        return [Opinion(value) for value in scores.tolist()]

    return asked
