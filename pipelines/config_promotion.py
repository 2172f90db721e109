"""The sections of params.yaml that say what happens to a trained policy: registry, promotion, retraining, collecting, monitoring.

No stage lists them, so a changed bound retrains nothing. Every key has a default: a recipe may leave all of them out.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Ceiling = Annotated[float, Field(gt=0.0)]
Whole = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Registry(_Section):
    """The registered model ``name``: ``models:/NAME@champion`` is what serves.

    ``copy_weights: false`` keeps the weights in DVC alone; ``prefloop pull VERSION`` then fetches them. ``git_remote`` is
    where the tags of versions are pushed; empty = nowhere. The licences and ``limits`` stand in the model card.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "prefloop"
    copy_weights: bool = True
    git_remote: str = ""
    licence_of_base: str = ""
    licence_of_data: str = ""
    limits: str = ""


class Promotion(_Section):
    """The gates between a challenger and the name ``champion``; None (null) leaves a gate out.

    ``min_win_rate``: the lower end of the 95 % interval of the head-to-head win rate must lie above it (against the SFT
    model where there is no champion yet). ``max_kl``: nats a sequence to the SFT model. ``min_pair_accuracy`` and
    ``max_log_loss`` (nats; ln 2 is a coin's): the reward model on held-out pairs. ``max_calibration_error``: its expected
    calibration error there; what as many pairs of a perfectly calibrated model show by chance is allowed in any case.
    ``regressions``: metric -> by how much the challenger may be worse than the champion; a leading ``-`` in the metric's
    name says that less is better. ``group_regressions``: the same in every group of prompts with ``min_group_prompts`` or more.
    ``max_group_loss``: no such group may surely lose by this much (upper end of its win rate's interval below 0.5 - it).
    """

    min_win_rate: Share | None = 0.5
    max_kl: Ceiling | None = 20.0
    min_pair_accuracy: Share | None = 0.55
    max_log_loss: Ceiling | None = 0.6931
    max_calibration_error: Share | None = 0.1
    regressions: dict[str, Annotated[float, Field(ge=0.0)]] = {"eos_rate": 0.1, "distinct_2": 0.1}
    group_regressions: dict[str, Annotated[float, Field(ge=0.0)]] = {}
    max_group_loss: Share | None = 0.0
    min_group_prompts: Whole = 10
    checks: bool = True
    pushed: bool = False
    approval: bool = False
    approval_hours: Ceiling = 72.0


class Retrain(_Section):
    """What ``prefloop retrain`` does around a training: which policy it registers, and where it leaves what it learnt.

    ``branch`` is where params.yaml and dvc.lock are committed; empty = on no branch, the version's tag alone holds them.
    """

    policy: str = ""
    branch: str = ""
    push: bool = True


class Collect(_Section):
    """What ``prefloop collect`` and ``iterate`` ask of a policy, and who labels it (docs/loop.md).

    ``prompts`` are answered ``answers`` times each, as in ``preferences.generation``; ``pairs`` of a prompt's answers are
    labelled. The share ``uncertain`` of them are those on which the reward model is least sure, the others are drawn by seed.
    ``labels``: by ``preferences.judge`` with its noise, or by people, for whom a file is written.
    """

    prompts: Whole = 128
    answers: Annotated[int, Field(ge=2)] = 4
    pairs: Whole = 128
    uncertain: Share = 0.5
    labels: Literal["judge", "people"] = "judge"


class Monitor(_Section):
    """How far served traffic may be from the champion's evaluation before it is an alarm (``pipelines/evaluation/drift.py``).

    ``log``: where served replies are logged. ``window``: replies that are judged together; each reply is judged once.
    """

    log: str = "data/served/replies.jsonl"
    window: Annotated[int, Field(ge=500)] = 500
    psi_warning: Ceiling = 0.1
    psi_alarm: Ceiling = 0.25
    ks_p: Share = 0.05
    ks_distance: Share = 0.1
    mmd_p: Share = 0.01
    mmd_permutations: Whole = 200
    resamples: Whole = 200
    alarms_in_a_row: Whole = 2
