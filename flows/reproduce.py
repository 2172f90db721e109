"""``prefloop reproduce VERSION``: make a version again from its commit, in a worktree, and compare file by file.

No result is taken from a cache: every stage runs (``dvc repro --force --no-run-cache``), and nothing is written to the
project's own cache, store or registry.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import config
from pipelines.adapters import machine
from pipelines.adapters.registry import Version
from pipelines.errors import ConfigurationError, EnvironmentFault
from tasks import card, locks, registry, worktrees
from tasks.registry import Office
from tasks.repository import git


@dataclass(frozen=True)
class Verdict:
    """What a reproduction gave. ``files``: of the model, those that differ; ``stage``: the first whose outputs differ, and
    ``causes``: what differs in its inputs; ``elsewhere``: what differs in the environment in which it ran."""

    compared: int
    stages: int
    files: list[str] = field(default_factory=list)
    stage: str = ""
    causes: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Every file and every stage's outputs."""
        return not self.files and not self.stage


def reproduce(office: Office, version: Version, params: Path | None = None) -> Verdict:
    """Run a version's stages again, with another ``params`` file where one is given. Raises EnvironmentFault where they fail."""
    lineage = registry.lineage_of(office, version)
    manifest = registry.manifest_of(office, version)
    tag = lineage["tag"]
    if not git(office.root, "tag", "--list", tag):
        raise EnvironmentFault(f"{version.uri}: git has no tag {tag}; `git fetch --tags` brings it from a remote")
    with worktrees.temporary(office.root, tag, "reproduce") as folder:
        if params is not None:
            shutil.copy2(params, folder / config.PARAMS)
        settings = config.load(folder / config.PARAMS)
        worktrees.pull_inputs(folder)
        _run(folder, [f"policy@{lineage['policy']}", f"evaluate@{lineage['policy']}"])
        ours = locks.parse((folder / "dvc.lock").read_text(encoding="utf-8"))
        files = card.differing(folder / "artifacts" / "policies" / lineage["policy"] / "model", manifest)
        return _verdict(ours, lineage, files, len(manifest), machine.environment(settings.runtime))


def told(version: Version, verdict: Verdict) -> str:
    """The verdict in words."""
    if verdict.identical:
        return f"{version.uri}: identical: {verdict.compared} files of the model, the outputs of {verdict.stages} stages"
    lines = [f"{version.uri}: differs in {len(verdict.files)} of {verdict.compared} files: {', '.join(verdict.files) or 'none'}"]
    lines += [f"first stage that differs: {verdict.stage}"] if verdict.stage else []
    lines += [f"  {cause}" for cause in verdict.causes or ["nothing differs in what it reads"]]
    lines += [f"  environment: {difference}" for difference in verdict.elsewhere]
    if not verdict.causes and not verdict.elsewhere:
        lines.append("  same code, data, parameters, libraries, workers, threads and CPU flags: the stage is not deterministic")
    return "\n".join(lines)


def _verdict(ours: locks.Lock, lineage: dict[str, Any], files: list[str], compared: int, here: dict[str, str]) -> Verdict:
    theirs: locks.Lock = lineage["lock"]
    stage = locks.first_difference(ours, theirs, theirs)
    causes = (
        locks.differences(ours, theirs, stage) if stage in ours else [f"the stage {stage} is not there any more"] if stage else []
    )
    there = lineage["environment"][stage or f"policy@{lineage['policy']}"]
    elsewhere = [
        f"{key}: {here.get(key, 'unknown')} here, {there.get(key, 'unknown')} there"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
    return Verdict(compared, len(theirs), files, stage, causes, elsewhere if stage or files else [])


def _run(folder: Path, targets: list[str]) -> None:
    code = worktrees.run_dvc(folder, ["repro", "--force", "--no-run-cache", "--no-commit", *targets])
    if code == 0:
        return
    left = sorted(folder.glob(".runs/*/error.json"), key=lambda path: path.stat().st_mtime)
    said = json.loads(left[-1].read_text(encoding="utf-8")) if left else {"message": f"DVC ended with {code}", "code": 4}
    fault = ConfigurationError if said["code"] == ConfigurationError.code else EnvironmentFault
    raise fault(f"the reproduction failed: {said['message']}")
