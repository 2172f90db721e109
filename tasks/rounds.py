"""What ``prefloop iterate`` remembers: a worktree, and a branch with one commit a round, from which it goes on.

The branch is the only state. ``rounds.json`` in each commit holds what began the loop and the figures of every round so far,
so a round is either whole (parameters, data, dvc.lock and its figures in one commit) or not there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipelines import config
from pipelines.errors import ConfigurationError
from tasks import collecting, repository, retraining, versions, worktrees
from tasks.repository import git

WORKTREE = worktrees.FOLDER / "iterate"
BRANCH = "iterate"
RECORD = "rounds.json"
PATIENCE = 2
"""Rounds in a row without gain after which the loop ends."""


@dataclass(frozen=True)
class Round:
    """The figures of one round; round 0 is the recipe as it stands. Standard errors are None where there is one prompt.

    ``labels``: pairs that the reward model was trained on, and measured on; ``gold``: the mean score by ``preferences.judge`` of
    the policy's answers to the held-out prompts; ``kl``: nats a sequence to the SFT model; ``win_rate``: against the SFT model.
    """

    number: int
    labels: int
    pair_accuracy: float | None
    gold: float
    gold_se: float | None
    kl: float
    kl_se: float | None
    win_rate: float


@dataclass(frozen=True)
class Loop:
    """A loop that is under way: ``begun`` says from which code, parameters and policy; ``rounds`` are those that are whole."""

    root: Path
    worktree: Path
    policy: str
    begun: dict[str, str]
    rounds: tuple[Round, ...] = ()

    @property
    def best(self) -> Round:
        """The round with the highest gold; the earlier one of two that are equal."""
        return max(self.rounds, key=lambda one: (one.gold, -one.number))

    def over(self, wanted: int) -> bool:
        """Whether ``wanted`` rounds after round 0 are done, or gold has not grown for two."""
        return bool(self.rounds) and (len(self.rounds) > wanted or self.rounds[-1].number - self.best.number >= PATIENCE)


def opened(root: Path, policy: str) -> Loop:
    """The loop on the branch ``iterate`` as its last whole round has left it; a new one where there is no such branch.

    Raises ConfigurationError where the branch holds a loop that began from other code, parameters or another policy.
    """
    params = config.load(root / config.PARAMS)
    policy = policy or params.retrain.policy or (next(iter(params.policies)) if len(params.policies) == 1 else "")
    if policy not in params.policies:
        raise ConfigurationError(
            f"--policy {policy or 'NAME'}: name one of the policies of params.yaml: {', '.join(params.policies)}"
        )
    if params.collect.labels == "people":
        raise ConfigurationError(
            "collect.labels: people: the loop does not wait for people; go round by hand, as docs/loop.md shows"
        )
    text = (root / config.PARAMS).read_bytes()
    begun = {"commit": git(root, "rev-parse", "HEAD"), "params": hashlib.sha256(text).hexdigest(), "policy": policy}
    known = _recorded(root)
    if known is None:
        folder = retraining.prepare(root, WORKTREE)
        _learn_from_the_pool(folder / config.PARAMS)
        return Loop(root, folder, policy, begun)
    if known["begun"] != begun:
        changed = ", ".join(name for name, value in begun.items() if known["begun"].get(name) != value)
        raise ConfigurationError(
            f"the branch {BRANCH} holds a loop that began with another {changed}: merge or rename it, or begin anew with"
            f" `git branch -D {BRANCH}`"
        )
    return Loop(root, _restored(root), policy, begun, tuple(Round(**one) for one in known["rounds"]))


def stages(loop: Loop) -> tuple[str, ...]:
    """What a round brings up to date: the policy's evaluation and all that it stands on."""
    after = {planned.stage: planned.after for planned in versions.plan(loop.worktree).stages}
    wanted, found = [f"evaluate@{loop.policy}"], set[str]()
    while wanted:
        stage = wanted.pop()
        if stage not in found:
            found.add(stage)
            wanted += after[stage]
    return tuple(stage for stage in after if stage in found)


def ask(loop: Loop, number: int) -> None:
    """Collect a round's pairs from the best policy so far, as DVC has it; what an interrupted try has collected stays."""
    if collecting.is_whole(loop.worktree, number):
        return
    path = f"artifacts/policies/{loop.policy}/model"
    folder = loop.worktree / ".runs" / "best"
    repository.fetch(loop.root, commits(loop)[loop.best.number], path, folder)
    collecting.draw(loop.worktree, number, folder, collecting.described(f"{loop.policy} of round {loop.best.number}", folder))


def record(loop: Loop) -> Loop:
    """Commit the round that has been evaluated, and move the branch to it: now it is whole."""
    artifacts = loop.worktree / "artifacts"
    figures = json.loads((artifacts / "evaluations" / loop.policy / "metrics.json").read_text(encoding="utf-8"))
    reward = json.loads((artifacts / "reward" / "metrics.json").read_text(encoding="utf-8"))
    made = Round(
        number=len(loop.rounds),
        labels=sum(int(reward[f"{split}_pairs"]) for split in ("train", "validation", "test")),
        pair_accuracy=reward.get("pair_accuracy"),
        gold=figures["gold_mean"],
        gold_se=figures["gold_se"],
        kl=figures["kl"],
        kl_se=figures["kl_se"],
        win_rate=figures["win_rate"],
    )
    loop = replace(loop, rounds=(*loop.rounds, made))
    content = {"begun": loop.begun, "rounds": [asdict(one) for one in loop.rounds]}
    (loop.worktree / RECORD).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    message = f"Round {made.number} of the loop: gold {made.gold:.3f}, KL {made.kl:.2f} nats"
    commit = retraining.committed(loop.worktree, message, RECORD)
    git(loop.root, "update-ref", f"refs/heads/{BRANCH}", commit)
    return loop


def commits(loop: Loop) -> list[str]:
    """The commit of every round, by number."""
    return git(loop.root, "log", "--reverse", "--format=%H", f"{loop.begun['commit']}..{BRANCH}").splitlines()


def _recorded(root: Path) -> dict[str, Any] | None:
    """What the branch's last commit says; None where there is no such branch."""
    found = subprocess.run(["git", "show", f"refs/heads/{BRANCH}:./{RECORD}"], cwd=root, capture_output=True, text=True)
    if found.returncode == 0:
        return dict(json.loads(found.stdout))
    if subprocess.run(
        ["git", "rev-parse", "--quiet", "--verify", f"refs/heads/{BRANCH}"], cwd=root, capture_output=True
    ).returncode:
        return None
    raise ConfigurationError(f"the branch {BRANCH} is not a loop's ({RECORD} is not in it); rename it")


def _restored(root: Path) -> Path:
    """The worktree at the last whole round; what an interrupted one has collected or trained beyond it is still there."""
    folder = root / WORKTREE
    git(root, "worktree", "prune")
    if (folder / ".git").exists():
        git(folder, "checkout", "--quiet", "--force", "--detach", f"refs/heads/{BRANCH}")
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(root, "worktree", "add", "--quiet", "--force", "--detach", str(folder), f"refs/heads/{BRANCH}")
    repository.share_cache(root, folder)
    worktrees.pull_inputs(folder)
    return folder


def _learn_from_the_pool(path: Path) -> None:
    """Without the pool nothing that is collected would be learned: in the worktree's parameters ``judge`` becomes ``both``."""
    yaml = YAML()
    params = yaml.load(path.read_text(encoding="utf-8"))
    if params["preferences"].get("source", "judge") == "judge":
        params["preferences"]["source"] = "both"
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(params, file)
