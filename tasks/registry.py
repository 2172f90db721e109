"""Registering a policy, and the names that the registry shows: what MLflow holds follows git, DVC and the ledger."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import config
from pipelines.adapters import machine
from pipelines.adapters.registry import CONTENT, DVC, Registry, Version, run_facts
from pipelines.adapters.spool import store_uri
from pipelines.errors import ConfigurationError, DataError
from tasks import card, locks, repository, versions
from tasks.ledger import LEDGER, Ledger, Standing, path_of
from tasks.repository import git

MANIFEST, LINEAGE = "manifest.json", "lineage.json"
COSTS = {"seconds": "time/seconds", "core_seconds": "time/core_seconds", "gpu_seconds": "time/gpu_seconds"}


@dataclass(frozen=True)
class Office:
    """What every command on versions needs, opened once (MLflow takes 2 s to import)."""

    root: Path
    params: config.Params
    registry: Registry
    ledger: Ledger

    @property
    def name(self) -> str:
        """The registered model's name."""
        return self.registry.name

    def standing(self) -> Standing:
        """Who is champion."""
        return self.ledger.standing(self.name)


def opened(root: Path) -> Office:
    """The registry and the ledger of this project; what a crash has left half done is finished first."""
    params = config.load(root / config.PARAMS)
    registry = Registry(root, params.registry.name)
    office = Office(root, params, registry, Ledger(path_of(root, registry.uri)))
    converge(office)
    return office


def use_store_of(root: Path) -> None:
    """Let a worktree use the project's store and ledger: for this process and its children."""
    os.environ["MLFLOW_TRACKING_URI"] = store_uri(root)
    os.environ[LEDGER] = str(path_of(root, store_uri(root)))


def converge(office: Office) -> list[str]:
    """Make MLflow's aliases and tags say what the ledger says; return what had to be changed.

    The ledger is held meanwhile, so nobody who is behind can write over somebody who is ahead.
    """
    changed = []
    with office.ledger.held() as ledger:
        entries = ledger.entries(office.name)
        if not entries:
            return []
        present = office.registry.aliases()
        for alias, number in _aliases(entries).items():
            if present.get(alias, "") != number:
                office.registry.set_alias(alias, number)
                changed.append(f"{alias} -> {number or 'nobody'}")
        wanted = _tags(entries)
        tagged = {version.number: version.tags for version in office.registry.versions()} if wanted else {}
        for number, tags in wanted.items():
            missing = {key: value for key, value in tags.items() if tagged.get(number, {}).get(key) != value}
            if missing and number in tagged:
                office.registry.tag(number, missing)
                changed.append(f"tags of {number}")
    return changed


def _aliases(entries: list[Any]) -> dict[str, str]:
    """The three aliases: the newest version that was never promoted is the challenger."""
    from tasks.ledger import standing_of

    now = standing_of(entries)
    promoted = {entry.version for entry in entries if entry.kind == "promote"}
    fresh = [entry.version for entry in entries if entry.kind == "register" and entry.version not in promoted]
    newest = fresh[-1] if fresh else ""
    return {"champion": now.champion, "previous": now.previous, "challenger": newest}


def _tags(entries: list[Any]) -> dict[str, dict[str, str]]:
    tags: dict[str, dict[str, str]] = {}
    for entry in entries:
        if entry.kind == "promote":
            tags.setdefault(entry.version, {})["prefloop.promoted"] = (
                f"{entry.time}, ledger entry {entry.number} {entry.hash[:12]}"
            )
        elif entry.kind == "rollback":
            tags.setdefault(entry.body["from"], {})["prefloop.rolled_back"] = f"{entry.time}, ledger entry {entry.number}"
        elif entry.kind == "decision":
            tags.setdefault(entry.version, {})["prefloop.decision"] = (
                f"{'passed' if entry.body.get('passed') else 'refused'}, ledger entry {entry.number}"
            )
            tags[entry.version]["prefloop.parent"] = entry.body.get("champion") or "none"
    return tags


def register(office: Office, policy: str) -> tuple[Version, bool]:
    """Register a policy of the present workspace; return its version and whether it is new.

    The same content gives the same version. Raises ConfigurationError for an unknown policy or a run that git does not
    hold (nothing could make it again), DataError where the model is not there.
    """
    root, params = office.root, office.params
    if policy not in params.policies:
        raise ConfigurationError(f"--policy {policy}: params.yaml has no such policy; policies: {', '.join(params.policies)}")
    folder = root / "artifacts" / "policies" / policy / "model"
    if not (folder / "config.json").exists():
        raise DataError(f"artifacts/policies/{policy}/model: not there yet; `prefloop run` trains it")
    if (folder / "soft_prompt").is_dir():
        raise ConfigurationError(
            f"--policy {policy}: it answers through a soft prompt, which no weights can hold: whoever served the version would"
            " serve another model; train it, and sft, with adapter: lora or none"
        )
    lock = _recorded(root, policy)
    files = card.manifest(folder)
    content = card.content_of(files)
    with _one_at_a_time(office):
        known = office.registry.with_content(content)
        if known is None:
            tag = _keep(office, policy, content, lock)
            facts = _facts(office, policy, lock, files, tag)
            known, fresh = _create(office, policy, folder, content, facts), True
        else:
            fresh = False
        body = {"content": content, "policy": policy, "commit": known.tags.get("git.commit", "")}
        office.ledger.append(office.name, "register", known.number, body, f"register:{office.name}:{content}")
    converge(office)
    return known, fresh


def manifest_of(office: Office, version: Version) -> dict[str, dict[str, Any]]:
    """The manifest that was registered, checked against the version's content hash."""
    files = dict(json.loads(office.registry.read(version, MANIFEST)))
    if card.content_of(files) != version.tags.get(CONTENT):
        raise DataError(f"{version.uri}: its manifest is not the one that was registered; do not use this version")
    return files


def lineage_of(office: Office, version: Version) -> dict[str, Any]:
    """The facts that were registered with a version."""
    return dict(json.loads(office.registry.read(version, LINEAGE)))


def pull(office: Office, version: Version, to: Path) -> Path:
    """A version's plain transformers folder at ``to``, every file checked. Raises DataError where one is not as registered."""
    files = manifest_of(office, version)
    fetched = office.registry.fetch(version, to)  # a folder of its own below `to`
    for path in sorted(fetched.iterdir()):
        path.replace(to / path.name)
    fetched.rmdir()
    if not version.copied:
        _from_dvc(office.root, version, to)
    wrong = card.differing(to, files)
    if wrong:
        raise DataError(f"{version.uri}: {', '.join(wrong)} is not as registered (sha256); do not use it: {to}")
    return to


def folder_of(office: Office, version: Version, spare: Path) -> Path:
    """A version's folder to read: in place where the store is on this machine, else fetched below ``spare``."""
    return office.registry.located(version, spare) if version.copied else pull(office, version, spare / "pulled")


def verified(office: Office, version: Version) -> list[str]:
    """The files of a version that are not as registered; empty when its manifest holds."""
    try:
        files = manifest_of(office, version)
        with tempfile.TemporaryDirectory(prefix="prefloop-") as name:
            return card.differing(folder_of(office, version, Path(name)), files)
    except DataError as error:
        return [str(error)]


def _from_dvc(root: Path, version: Version, to: Path) -> None:
    """Fetch the weights from this project's DVC cache, or its remote, at the version's tag."""
    tag, _, path = version.source.removeprefix(DVC).partition("//")
    try:
        repository.fetch(root, tag, path, to)
    except DataError as error:
        raise DataError(f"{version.uri}: {error}") from error


def _recorded(root: Path, policy: str) -> locks.Lock:
    """dvc.lock, when the workspace is what it says and git holds it, the parameters and the code."""
    from tasks.publish import commit

    wanted = f"policy@{policy}"
    unfinished = [planned for planned in versions.plan(root).stages if planned.action != "unchanged"]
    lock = locks.parse((root / "dvc.lock").read_text(encoding="utf-8")) if (root / "dvc.lock").exists() else {}
    needed = {*locks.closure(lock, wanted), *locks.closure(lock, f"evaluate@{policy}"), wanted}
    stale = [planned.stage for planned in unfinished if planned.stage in needed]
    if stale or wanted not in lock:
        raise ConfigurationError(f"{', '.join(stale) or wanted}: not up to date; `prefloop run` first")
    changed = git(root, "status", "--porcelain", "--", "params.yaml", "dvc.lock")
    if changed or "uncommitted" in commit(root):
        raise ConfigurationError(
            "this run is not recorded in git, so nothing could make it again; "
            "`prefloop commit` records params.yaml and dvc.lock, `git commit` your code"
        )
    return lock


def _keep(office: Office, policy: str, content: str, lock: locks.Lock) -> str:
    """The git tag that keeps a version's lineage from any clean-up, and its data in DVC's remote where there is one."""
    root = office.root
    tag = f"registry/{office.name}/{content[:12]}"
    if not git(root, "tag", "--list", tag) or locks.parse(git(root, "show", f"{tag}:./dvc.lock")) != lock:
        # no version has this content yet, so a tag that is there was left by a registration that died, of another run
        git(root, "tag", "--force", "--annotate", "--message", f"{office.name}: {policy}, content {content}", tag)
    with repository.opened(root) as repo:
        if repo.config["core"].get("remote"):
            targets = sorted({*locks.closure(lock, f"policy@{policy}"), *locks.closure(lock, f"evaluate@{policy}")})
            repo.push(targets=targets, run_cache=True)
    if office.params.registry.git_remote:
        git(root, "push", "--quiet", office.params.registry.git_remote, f"refs/tags/{tag}")
    return tag


def _facts(office: Office, policy: str, lock: locks.Lock, files: dict[str, dict[str, Any]], tag: str) -> dict[str, Any]:
    """The lineage: what a version was made from, what it is worth and what it cost."""
    root, params = office.root, office.params
    evaluated = root / "artifacts" / "evaluations" / policy / "metrics.json"
    reward = root / "artifacts" / "reward" / "metrics.json"
    stages = [
        stage for stage in lock if stage in {*locks.closure(lock, f"policy@{policy}"), *locks.closure(lock, f"evaluate@{policy}")}
    ]
    figures, environments = _runs_of(root, lock, stages)
    here = machine.environment(params.runtime)
    return {
        "policy": policy,
        "manifest": files,
        "tag": tag,
        "commit": git(root, "rev-list", "-n", "1", tag),
        "dvc_lock": locks.digest(lock),
        "lock": {stage: lock[stage] for stage in stages},
        "data": locks.digest(locks.hashes(lock, "prepare")) if "prepare" in lock else "",
        "params": locks.digest({stage: locks.params(lock, stage) for stage in stages}),
        "evaluation": locks.evaluation_key(lock, policy),
        "environment": {stage: environments.get(stage) or here for stage in stages},
        "metrics": json.loads(evaluated.read_text(encoding="utf-8")) if evaluated.exists() else {},
        "reward": json.loads(reward.read_text(encoding="utf-8")) if reward.exists() else {},
        "doctor": _blocking(root, params, policy),
        "cost": _cost(figures, len(stages)),
        "example": "HAMLET: To be, or not" if params.prepare.source == "plays" else "Hello",
    }


def _blocking(root: Path, params: config.Params, policy: str) -> list[str]:
    """What the doctor finds in the trainings behind a policy that forbids a promotion."""
    from pipelines import doctor
    from pipelines.diagnosis.audit import audit

    return audit(doctor.known(root, params, [doctor.SFT, doctor.REWARD, policy])).blocking


def _runs_of(root: Path, lock: locks.Lock, stages: list[str]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """Figures and environment of every stage's run, from MLflow (a cached stage has one too); none where nobody tracked it."""
    found = {stage: run_facts(root, locks.stage_hash(lock, stage)) for stage in stages}
    figures = {stage: figures for stage, (figures, _) in found.items() if figures}
    return figures, {stage: environment for stage, (_, environment) in found.items() if environment}


def _cost(figures: dict[str, dict[str, float]], stages: int) -> dict[str, Any]:
    """Seconds of every stage that made it, of which there are ``stages``."""
    per_stage = {stage: {name: round(own.get(key, 0.0), 3) for name, key in COSTS.items()} for stage, own in figures.items()}
    total = {name: round(sum(cost[name] for cost in per_stage.values()), 3) for name in COSTS}
    return {"stages": per_stage, "total": total, "unknown": stages - len(per_stage)}


def _create(office: Office, policy: str, folder: Path, content: str, facts: dict[str, Any]) -> Version:
    metrics = {f"metric.{key}": json.dumps(value) for key, value in facts["metrics"].items()}
    tags = {
        CONTENT: content,
        "prefloop.policy": policy,
        "prefloop.method": office.params.policies[policy].method,
        "git.commit": facts["commit"],
        "git.tag": facts["tag"],
        "prefloop.dvc_lock": facts["dvc_lock"],
        "prefloop.data": facts["data"],
        "prefloop.params": facts["params"],
        "prefloop.evaluation": facts["evaluation"],
        "prefloop.environment": locks.digest(facts["environment"]),
        "prefloop.doctor": "; ".join(facts["doctor"]) or "no finding that blocks",
        "prefloop.cost": json.dumps(facts["cost"]["total"]),
        **metrics,
    }
    copied = office.params.registry.copy_weights
    place = "" if copied else f"{DVC}{facts['tag']}//artifacts/policies/{policy}/model"
    with tempfile.TemporaryDirectory(prefix="prefloop-") as name:
        extras = Path(name)
        card.write(extras, office.root, policy, office.params, facts)
        described = card.card(policy, office.params, facts).rpartition("---\n")[2]
        return office.registry.create(folder if copied else None, extras, tags, described, place)


@contextmanager
def _one_at_a_time(office: Office) -> Iterator[None]:
    """Two registrations of one content would both find it missing."""
    with office.ledger.path.with_suffix(".registering").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
