"""What ``mlflow models serve`` answers with: the loader that a version's MLmodel names. No pickle, no code in the folder.

MLflow's own transformers flavor does not work with transformers 5.23, and pyfunc's default is a pickle. The ``loader_module``
of a python_function flavor needs neither: MLflow imports this module (prefloop has to be installed) and gives it the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.config import Generation
from pipelines.context import seed_for

NUMBERS = {"temperature": float, "max_new_tokens": int, "seed": int}


class Served:
    """A plain transformers folder behind MLflow's scoring protocol."""

    def __init__(self, folder: Path) -> None:
        from pipelines.models.loading import load_causal_lm, load_tokenizer

        self.tokenizer, self.model = load_tokenizer(folder), load_causal_lm(folder)

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> list[str]:
        """One answer to every row's ``prompt``; ``params`` may set temperature (0 = greedy), max_new_tokens and seed."""
        from pipelines.data.tokens import decode, encode_prompt
        from pipelines.models.generation import sample

        given = {key: NUMBERS[key](value) for key, value in (params or {}).items() if key in NUMBERS and value is not None}
        temperature, seed = given.get("temperature", 1.0), given.get("seed", 1)
        generation = Generation(max_new_tokens=given.get("max_new_tokens", 64), temperature=temperature or 1.0)
        asked = [encode_prompt(self.tokenizer, str(text)) for text in frame["prompt"]]
        seeds = [seed_for(seed, "serve", row) for row in range(len(asked))]
        ids = (self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        drawn = sample(self.model, *ids, asked, generation, seeds, "float32", greedy=temperature == 0.0)
        return [decode(self.tokenizer, answer) for answer in drawn.tokens]


def _load_pyfunc(folder: str) -> Served:
    return Served(Path(folder))
