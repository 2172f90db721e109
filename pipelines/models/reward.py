"""The reward model: a trunk (maybe with LoRA) and a linear head on the answer's hidden states.

r(x, y) = w . pool_t h_t(x, y) - c, where pool is the mean over the answer's tokens or its last token, and c centres the
scores of the SFT model's own answers at 0 (Stiennon et al. 2020, section 3.4).

Axes: B rows, T tokens, H hidden units.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipelines.data.tables import write_json
from pipelines.data.tokens import right_pad
from pipelines.errors import ConfigurationError, DataError
from pipelines.models.adapters import is_adapted, load_adapter, save_adapter
from pipelines.models.loading import autocast, load_causal_lm, load_tokenizer, vocabulary
from pipelines.models.soft_prompt import trains_prompt

HEAD, SETTINGS, ADAPTER, TRUNK = "head.safetensors", "reward.json", "adapter", "trunk.safetensors"
GROUPS = "groups.json"
Pooling = Literal["mean", "last"]


class RewardModel(nn.Module):
    """A scalar a row. ``logits`` [B, 1] are centred; what TRL's RewardTrainer expects of a model is here as well."""

    centre: torch.Tensor

    def __init__(self, trunk: Any, pooling: Pooling, vocabulary: str, centre: float = 0.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        self.vocabulary = vocabulary
        self.config = trunk.config
        self.config.num_labels = 1
        self.head = nn.Linear(trunk.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("centre", torch.tensor(float(centre)))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_mask: torch.Tensor,
        use_cache: bool = False,
        **_: Any,
    ) -> Any:
        """Score rows. ``input_ids``, ``attention_mask`` and ``answer_mask`` are [B, T], padded on the right."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = self.trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return SequenceClassifierOutput(logits=self.score_hidden(hidden, answer_mask))

    def score_hidden(self, hidden: torch.Tensor, answer_mask: torch.Tensor) -> torch.Tensor:
        """Pool [B, T, H] hidden states over the answer's tokens and score them: [B, 1]. In float32 under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(pool(hidden.float(), answer_mask, self.pooling)) - self.centre

    def add_model_tags(self, tags: Any) -> None:
        """TRL tags models for the hub; this one goes nowhere."""


def pool(hidden: torch.Tensor, answer_mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector a row, [B, H]: the mean over the answer's tokens, or its last token. Rows without answer are refused."""
    lengths = answer_mask.sum(1)
    if bool((lengths == 0).any()):
        raise DataError("a row to score has no answer token; an answer holds at least its EOS")
    if pooling == "mean":
        weights = answer_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / lengths.unsqueeze(-1)
    positions = torch.arange(answer_mask.shape[1], device=hidden.device)
    last = (positions * answer_mask).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def new_reward(sft_folder: Path, pooling: Pooling, layers: int = 0, device: str = "cpu") -> RewardModel:
    """An untrained reward model on the SFT model's first ``layers`` layers (0 = all): every score is 0, as the head is."""
    trunk = lower(load_causal_lm(sft_folder, device).base_model, layers)
    return RewardModel(trunk, pooling, vocabulary(load_tokenizer(sft_folder))).to(device)


def lower(trunk: Any, layers: int) -> Any:
    """The trunk cut off above its first ``layers`` layers (0 = all); its final norm stays."""
    if layers:
        found = len(getattr(trunk, "layers", ()))
        if layers > found:
            raise ConfigurationError(f"reward.layers: {layers}: the model has {found} layers to name; set fewer, or 0 for all")
        trunk.layers = trunk.layers[:layers]
        trunk.config.num_hidden_layers = layers
    return trunk


def save_reward(model: RewardModel, folder: Path, base: str = "") -> None:
    """Write the head, the pooling and centre, and what was trained of the trunk (an adapter, or the whole trunk)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": model.head.weight.detach().cpu().contiguous()}, folder / HEAD)
    kind = "adapter" if is_adapted(model.trunk) or trains_prompt(model.trunk) else "trunk"
    if kind == "adapter":
        save_adapter(model.trunk, folder / ADAPTER, base)
    else:
        state = model.trunk.state_dict()
        save_file({key: state[key].detach().cpu().contiguous() for key in sorted(state)}, folder / TRUNK)
    layers = model.config.num_hidden_layers
    settings = {"centre": float(model.centre), "layers": layers, "pooling": model.pooling, "trained": kind}
    write_json(folder / SETTINGS, settings | {"vocabulary": model.vocabulary})


def load_reward(folder: Path, sft_folder: Path, device: str = "cpu") -> RewardModel:
    """Load a reward model on top of the SFT model's folder, frozen and in evaluation mode.

    Raises DataError where there is none, or where it was trained with another tokenizer: it is given rows of tokens.
    """
    from safetensors.torch import load_file

    if not (folder / SETTINGS).is_file():
        raise DataError(f"{folder}: no reward model here ({SETTINGS} is missing); run the stage reward")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    if settings["vocabulary"] != vocabulary(load_tokenizer(sft_folder)):
        raise DataError(
            f"{folder}: this reward model was trained with another tokenizer than that of {sft_folder}: its tokens mean other"
            " words; train one on this model (stage reward)"
        )
    trunk = lower(load_causal_lm(sft_folder).base_model, settings["layers"])
    if settings["trained"] == "adapter":
        trunk = load_adapter(trunk, folder / ADAPTER)
    else:
        trunk.load_state_dict(load_file(folder / TRUNK))
    model = RewardModel(trunk, settings["pooling"], settings["vocabulary"], settings["centre"])
    model.head.load_state_dict(load_file(folder / HEAD))
    return model.requires_grad_(False).to(device).eval()


def member_folder(folder: Path, member: int) -> Path:
    """Where a member of an ensemble is: the first in the folder itself, as if it were alone."""
    return folder / "members" / str(member) if member else folder


def load_members(folder: Path, sft_folder: Path, device: str = "cpu") -> list[RewardModel]:
    """All members of an ensemble; one where the reward model is alone."""
    count = 1 + len([path for path in (folder / "members").glob("*") if path.is_dir()])
    return [load_reward(member_folder(folder, member), sft_folder, device) for member in range(count)]


def recentre(folder: Path, by: float) -> None:
    """Take ``by`` off all scores of a saved reward model."""
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    write_json(folder / SETTINGS, settings | {"centre": settings["centre"] + by})


def group_folder(folder: Path, number: int) -> Path:
    """Where the reward model of a group is."""
    return folder / "groups" / str(number)


def group_names(folder: Path) -> list[str]:
    """The groups that have a reward model of their own, by number; [] where none has."""
    file = folder / GROUPS
    return list(json.loads(file.read_text(encoding="utf-8"))["groups"]) if file.is_file() else []


def load_groups(folder: Path, sft_folder: Path, device: str = "cpu") -> dict[str, RewardModel]:
    """Every group's own reward model by the group's name. Raises DataError where there is none."""
    names = group_names(folder)
    if not names:
        raise DataError(f"{folder}: no group has a reward model of its own; set reward.groups: given or found")
    return {name: load_reward(group_folder(folder, n), sft_folder, device) for n, name in enumerate(names)}


@torch.no_grad()
def score(model: RewardModel, prompts: list[list[int]], answers: list[list[int]], batch_size: int, precision: str) -> list[float]:
    """The centred score of each answer (its tokens, EOS included where it was emitted), in the order given.

    Rows are batched with neighbours in length, so that little is padded.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prompts, {len(answers)} answers")
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]) + len(answers[row]), row))
    scores = [0.0] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = {key: value.to(device) for key, value in collate([(prompts[r], answers[r]) for r in rows]).items()}
        with autocast(precision, str(device)):  # type: ignore[arg-type]
            logits = model(**batch).logits
        for row, value in zip(rows, logits[:, 0].tolist(), strict=True):
            scores[row] = value
    return scores


def collate(rows: list[tuple[list[int], list[int]]], pad_id: int = 0) -> dict[str, torch.Tensor]:
    """Prompts and answers as ``input_ids``, ``attention_mask`` and ``answer_mask``, each [B, T], padded on the right.

    The padding's id is of no consequence: the masks are explicit.
    """
    ids, mask = right_pad([prompt + answer for prompt, answer in rows], pad_id)
    answer_mask, _ = right_pad([[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows], 0)
    return {"input_ids": ids, "attention_mask": mask, "answer_mask": answer_mask}


def score_members(
    models: list[RewardModel], prompts: list[list[int]], answers: list[list[int]], batch_size: int, precision: str
) -> torch.Tensor:
    """The centred scores [members, answers] of an ensemble."""
    return torch.tensor([score(model, prompts, answers, batch_size, precision) for model in models])


def cautious(scores_MN: torch.Tensor, deviations: float) -> list[float]:
    """Mean over members less ``deviations`` (population) standard deviations, one an answer (Coste et al. 2024, eq. 4)."""
    return (scores_MN.mean(0) - deviations * scores_MN.std(0, correction=0)).tolist()
