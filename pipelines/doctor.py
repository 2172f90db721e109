"""``python -m pipelines doctor [WHAT] [--json]``: is this run healthy, and if not, why. An audit, not a guarantee.

Reads     WHAT: a policy of params.yaml, ``sft`` or ``reward``; a history.parquet; the id of an MLflow run; nothing = all of it
Writes    nothing
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import config
from pipelines.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from pipelines.diagnosis.attribution import Attribution
    from pipelines.diagnosis.audit import Audit, Known
    from pipelines.diagnosis.finding import Finding
    from pipelines.diagnosis.spikes import Analysis, Rescore

RUN_ID = re.compile(r"^[0-9a-f]{32}$")
SFT, REWARD = "sft", "reward"


def main(arguments: Sequence[str], root: Path) -> None:
    """Print what the detectors find. Exit code 0 whatever they find, 2 or 3 where there is nothing to look at."""
    parser = argparse.ArgumentParser(prog="python -m pipelines doctor")
    parser.add_argument("what", nargs="?", default="")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    made = examined(root, options.what)
    text = json.dumps(made.as_json(), indent=2, allow_nan=False, default=float) if options.json else "\n".join(written(made))
    print(text, flush=True)


def examined(root: Path, what: str = "") -> Audit:
    """The audit of what ``what`` names. Raises ConfigurationError for a name that is none, DataError for one not trained yet."""
    from pipelines.diagnosis.audit import audit

    if what.endswith(".parquet"):
        return audit(_of_file(Path(what)))
    params = config.load(root / config.PARAMS)
    if RUN_ID.match(what):
        return audit(_of_run(root, what))
    names = [SFT, REWARD, *params.policies]
    if what and what not in names:
        raise ConfigurationError(f"{what}: neither a policy nor a file.parquet nor an MLflow run; there are: {', '.join(names)}")
    return audit(known(root, params, [what] if what else names), lambda name: _rescore(root, params, name))


def known(root: Path, params: config.Params, names: Sequence[str]) -> Known:
    """Everything that is there of ``names``: histories, figures, settings, journals, answers."""
    from pipelines.data.tables import read_table
    from pipelines.diagnosis.audit import Known
    from pipelines.evaluation.findings import actions_of

    artifacts = root / "artifacts"
    histories = {}
    for name in names:
        path = (artifacts if name in (SFT, REWARD) else artifacts / "policies") / name / "history.parquet"
        if path.exists():
            histories[name] = read_table(path)
    if not histories:
        raise DataError(f"{', '.join(names)}: no history.parquet under artifacts/; `prefloop run` trains first")
    policies = [name for name in histories if name in params.policies]
    samples = {name: artifacts / "evaluations" / name / "samples.parquet" for name in [SFT, *policies]}
    settings: dict[str, config.Training] = {SFT: params.sft, REWARD: params.reward, **params.policies}
    stages = {name: name if name in (SFT, REWARD) else f"policy@{name}" for name in histories}
    path = root / "dvc.lock"
    lock = _stages(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Known(
        histories=histories,
        metrics=_metrics(artifacts, policies),
        settings={name: settings[name].model_dump() for name in histories},
        samples={name: read_table(path) for name, path in samples.items() if path.exists()},
        journals={name: _journal(root / ".runs" / stage, lock.get(stage, {})) for name, stage in stages.items()},
        changed={name: changes for name, stage in stages.items() if (changes := _changed(root, stage)) is not None},
        actions=actions_of(artifacts, policies),
    )


def _metrics(artifacts: Path, policies: Sequence[str]) -> dict[str, Any]:
    """As report/metrics.json, from the stages' own files where the report is not made yet, with what the labels add."""
    from pipelines.data.schemas import GOLD, PAIRS
    from pipelines.data.tables import read_table
    from pipelines.evaluation.findings import labels

    report = _json(artifacts / "report" / "metrics.json")
    reward = _json(artifacts / "reward" / "metrics.json") | report.get("reward", {})
    pairs, gold = (artifacts / "preferences" / f"{name}.parquet" for name in ("pairs", "gold"))
    if pairs.exists() and gold.exists():
        table = read_table(pairs, PAIRS)
        reward |= labels(table, read_table(gold, GOLD)) | {"known_pairs": len(table)}
    reward |= {key: value for key, value in _json(artifacts / "prepared" / "quality.json").items() if key == "golden_accuracy"}
    evaluated = {name: _json(artifacts / "evaluations" / name / "metrics.json") for name in [SFT, *policies]}
    trained = {name: _json(artifacts / "policies" / name / "metrics.json") for name in policies}
    return {
        SFT: _json(artifacts / SFT / "metrics.json") | evaluated.pop(SFT),
        REWARD: reward,
        "policies": {name: trained[name] | found for name, found in evaluated.items()},
    }


def _of_file(path: Path) -> Known:
    from pipelines.data.tables import read_table
    from pipelines.diagnosis.audit import Known

    frame = read_table(path)
    if "step" not in frame or not len(frame):
        raise DataError(f"{path}: no history: it has no column step, or no row")
    return Known({path.parent.name or path.stem: frame})


def _of_run(root: Path, run_id: str) -> Known:
    import pandas as pd

    from pipelines.adapters import tracking
    from pipelines.diagnosis.audit import Known

    name, rows = tracking.read_run(root, run_id)
    if not rows:
        raise DataError(f"MLflow run {run_id}: no step of a training in it")
    return Known({name: pd.DataFrame(rows)})


def _journal(folder: Path, locked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines of the run that has made what is there, by the hashes in dvc.lock; none where DVC restored it from its cache."""
    from pipelines.journal import read_from

    outs = {out["path"]: out.get("md5") for out in locked.get("outs", [])}
    found = sorted(folder.glob("*/timings.jsonl"), key=lambda path: path.stat().st_mtime)
    made = _json(folder / "last.json").get("outs")
    return list(read_from(found[-1], 0)[0]) if found and outs and made == outs else []


def _changed(root: Path, stage: str) -> list[str] | None:
    """What the stage reads with other hashes in dvc.lock than in the recorded one (git HEAD); None where none is recorded."""
    import subprocess

    done = subprocess.run(["git", "show", "HEAD:dvc.lock"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode or not (root / "dvc.lock").exists():
        return None
    then, now = (_stages(text).get(stage) for text in (done.stdout, (root / "dvc.lock").read_text(encoding="utf-8")))
    if then is None or now is None:
        return None
    before, after = ({dep["path"]: dep.get("md5") for dep in one.get("deps", [])} for one in (then, now))
    paths = [path for path in sorted(before | after) if before.get(path) != after.get(path)]
    return [*paths, *(["parameters"] if then.get("params") != now.get("params") else [])]


def _stages(lock: str) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return dict((YAML(typ="safe").load(lock) or {}).get("stages", {}))


def _rescore(root: Path, params: config.Params, name: str) -> Rescore | None:
    """The reward model that the policy learnt from, as a function of prompts and texts."""
    entry = params.policies.get(name)
    folder, sft = root / "artifacts" / REWARD, root / "artifacts" / SFT / "model"
    if not isinstance(entry, config.Ppo) or not (folder / "reward.json").exists() or not (sft / "config.json").exists():
        return None

    def scores(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        from pipelines.data.tokens import encode_completions, encode_prompts
        from pipelines.models.loading import load_tokenizer
        from pipelines.models.reward import cautious, load_members, score_members

        tokenizer = load_tokenizer(sft)
        asked = encode_prompts(tokenizer, prompts)
        answers = encode_completions(tokenizer, texts, [True] * len(texts))
        return cautious(score_members(load_members(folder, sft), asked, answers, 32, "float32"), 0.0)

    return scores


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def written(made: Audit) -> list[str]:
    """The audit for people: a line a run, then what was found, why and what to do."""
    from pipelines.diagnosis.actions import told

    lines: list[str] = []
    for name, findings in made.findings.items():
        alarms = sum(one.blocks for one in findings)
        count = f"{alarms} alarms, {len(findings) - alarms} warnings" if findings else "nothing found"
        lines += [f"{name}: {count}", *(line for one in findings for line in _finding(one))]
        lines += [f"  acted at {told(one)}" for one in made.actions.get(name, ())]
    for attribution in made.attributions.values():
        lines += ["", *_attribution(attribution)]
    for name, spike in made.spikes.items():
        lines += ["", *_spike(name, spike)]
    return [*lines, "", "The detectors audit what was logged; they guarantee nothing (docs/diagnosis.md)."]


def _finding(one: Finding) -> list[str]:
    return [
        f"  {one.level} {one.detector}, {one.signal}, from step {one.first_step}",
        f"    {one.evidence}",
        f"    likely: {'; or '.join(one.causes)}",
        f"    do: {one.remedy}",
    ]


def _attribution(one: Attribution) -> list[str]:
    rows = [
        f"  {'ok' if figure.good else 'AT FAULT':<9} {figure.stage}: {figure.what}: "
        f"{'not measured' if figure.value is None else f'{figure.value:.3g}'} (wanted {figure.limit})"
        for figure in one.figures
    ]
    return [one.why, *(rows if one.disappoints else [])]


def _spike(name: str, one: Analysis) -> list[str]:
    mark = {True: "!", False: " ", None: "?"}
    rows = [f"  {mark[step.suspicious]} {step.question}: {step.answer}" for step in one.steps]
    return [
        f"{name}: why the reward jumped at step {one.step}",
        *rows,
        f"  likely: {one.cause or 'none of the eight stands out'}",
    ]
