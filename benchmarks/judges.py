"""What the default base model, SmolLM2-135M-Instruct, is worth as the judge of a constitution.

    python benchmarks/judges.py

200 pairs of answers that differ in one word, a kind or a harsh one; the principle asks for the kind one. The model compares
them in both orders, before and after the harsh answer speaks to the judge, and says of each answer alone whether it follows the
principle. Chance is 0.5. Writes results/judges.json; minutes on one core.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import ROOT, facts, save

sys.path.insert(0, str(ROOT))
PAIRS = 200
PRINCIPLES = "data/constitutions/kind.yaml"


def main() -> None:
    """Make the model's folder, ask, write."""
    from pipelines.config import Base, Constitution, Judge
    from pipelines.context import make_deterministic
    from pipelines.judges.asking import Opinion, Row, opened
    from pipelines.models.loading import save_model
    from pipelines.stages.base import from_gguf, settle
    from tests.judges import easy

    make_deterministic(1, threads=1)
    with tempfile.TemporaryDirectory(prefix="prefloop-benchmark-") as name:
        root = Path(name)
        base = Base(prompt_format="chat")
        model, tokenizer = from_gguf(base)
        settle(model, tokenizer, base)
        save_model(model, tokenizer, root / "artifacts" / "base")
        (root / PRINCIPLES).parent.mkdir(parents=True)
        (root / PRINCIPLES).write_text("principles:\n- The answer is kind.\n", encoding="utf-8")
        settings = Constitution(principles=PRINCIPLES, model="artifacts/base")
        asked = opened(Judge(kind="constitution", gold=False, constitution=settings), root, "cpu", workers=1)

        def opinions(rows: Sequence[Row]) -> list[Opinion]:
            size = settings.batch_size
            return [said for start in range(0, len(rows), size) for said in asked(rows[start : start + size])]

        rows = easy.pairs(random.Random(2), PAIRS, easy.PLACES)
        result: dict[str, Any] = {"pairs": PAIRS, "compared": {}}
        for injection in ("", *easy.INJECTIONS):
            began = time.perf_counter()
            said = opinions(easy.asked(rows, injection))
            result["compared"][injection] = figures(said) | {"seconds": round(time.perf_counter() - began, 1)}
        alone = [opinions([(row[0], row[answer]) for row in rows]) for answer in (1, 2)]
        wins = [kind.value > harsh.value for kind, harsh in zip(*alone, strict=True)]
        result["alone"] = {"agreement": sum(wins) / len(wins)}
    save("judges", result | facts("python benchmarks/judges.py"))


def figures(said: Sequence[Any]) -> dict[str, float]:
    """Agreement with the rule in one order and in both, and how the model leans to a letter."""
    from pipelines.judges.constitution import verdicts
    from tests.judges import easy

    found = verdicts(said)
    return {
        "agreement": easy.agreement(found.differences),
        "one_order": easy.agreement([one.value + one.bias for one in said]),
        "position_bias": round(found.figures["position_bias"], 3),
        "position_decided": found.figures["position_decided"],
        "preference": round(sum(abs(one.value) for one in said) / len(said), 3),
    }


if __name__ == "__main__":
    main()
