"""The flow ``collect``: pairs of a policy's answers, labelled by the judge or by people, as a new file of the pool."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger

from flows import environment
from tasks import collecting


@flow(name="collect", retries=0, persist_result=False)
def collect(root: str = ".", round: int = 0, policy: str = "champion") -> dict[str, Any]:
    """Collect round ``round`` (0 = the next). Where people were asked, their answers are read back instead of asking again.

    Returns counts and ``file``: the pool's, or the one that waits for people (``labels`` is then ``people``).
    """
    folder = Path(root).resolve()
    with environment.alone(folder):
        number = round or collecting.next_round(folder)
        if collecting.waits(folder, number):
            result = collecting.read_back(folder, number)
        else:
            with tempfile.TemporaryDirectory(prefix="prefloop-") as spare:
                result = collecting.draw(folder, number, *collecting.model_of(folder, policy, Path(spare)))
    get_run_logger().info(told(result))
    return result


def told(result: dict[str, Any]) -> str:
    """What was collected, in words, and what a person does next."""
    file = result["file"]
    if result["labels"] == "people":
        return (
            f"{file}: {result['asked']} pairs wait for people: write first, second or tie as each line's winner, then "
            f"`prefloop collect --round {result['round']}` again"
        )
    unsure = f", {result['uncertain']} of them where the reward model was least sure" if result["uncertain"] else ""
    return (
        f"{file}: {result['pairs']} pairs by {result['judge']} ({result['asked']} asked{unsure}; {result['ties']} ties); "
        f"versioned by DVC, commit {file}.dvc"
    )
