"""What has changed since the champion, for the page that is opened: figures side by side, and the inputs that differ."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from pipelines import config
from pipelines.adapters.registry import Version
from pipelines.adapters.spool import store_uri
from tasks import locks, registry
from tasks.ledger import path_of

SHOWN = {
    "gold_mean": "gold score", "reward_mean": "reward", "win_rate": "win rate against SFT", "kl": "KL to SFT, nats",
    "perplexity": "perplexity", "distinct_2": "distinct-2", "eos_rate": "EOS rate", "length": "length, tokens",
}  # fmt: skip


def section(root: Path) -> str:
    """The page's section; "" where no version was ever promoted, and a sentence where the registry cannot be read."""
    if not path_of(root, store_uri(root)).exists():
        return ""
    try:
        office = registry.opened(root)
        number = office.standing().champion
        if not number:
            return ""
        version = office.registry.version(number)
        body = _body(root, version, registry.lineage_of(office, version), office.params)
    except Exception as error:  # MLflow's stores raise their own; a section of the page is not worth the run that made it
        body = f"<p>{html.escape(f'{type(error).__name__}: {error}')}</p>"
    return f'<section id="champion"><h2>Since the champion</h2>{body}</section>'


def _body(root: Path, champion: Version, facts: dict[str, Any], params: config.Params) -> str:
    lock = locks.parse((root / "dvc.lock").read_text(encoding="utf-8"))
    name, commit = facts["policy"], facts["commit"][:10]
    told = f"Version {champion.number} of {champion.name}: the policy {name} of commit {commit}."
    alike = name in params.policies and locks.evaluation_key(lock, name) == facts["evaluation"]
    told += "" if alike else " It was asked, scored or judged otherwise than the policies of today: compare them by promotion."
    return f"<p>{html.escape(told)}</p>{_figures(root, champion, facts['metrics'], params)}{_inputs(lock, facts, name)}"


def _figures(root: Path, champion: Version, before: dict[str, Any], params: config.Params) -> str:
    columns = {f"champion (version {champion.number})": before}
    for name in sorted(params.policies):
        path = root / "artifacts" / "evaluations" / name / "metrics.json"
        if path.exists():
            columns[name] = json.loads(path.read_text(encoding="utf-8"))
    head = "".join(f'<th class="n">{html.escape(name)}</th>' for name in columns)
    rows = ""
    for key, label in SHOWN.items():
        values = [metrics.get(key) for metrics in columns.values()]
        if any(value is not None for value in values):
            cells = "".join(f'<td class="n">{"-" if value is None else f"{value:.3f}"}</td>' for value in values)
            rows += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="The champion and the policies of today">'
        f'<table class="figures"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _inputs(lock: locks.Lock, facts: dict[str, Any], policy: str) -> str:
    """Parameters, code, libraries and data that differ, each once, with the stages that read it; no stage's own outputs."""
    theirs: locks.Lock = facts["lock"]
    made = {path for stage in theirs for path in locks.hashes(theirs, stage)}
    found: dict[str, list[str]] = {}
    for stage in locks.ordered(theirs, theirs):
        if stage not in lock:
            found.setdefault(f"the stage {stage} is not there any more", [])
            continue
        for difference in locks.differences(lock, theirs, stage):
            path = difference.partition(" ")[2].partition(":")[0]
            if not any(path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/") for out in made):
                found.setdefault(difference.replace(" here, ", " today, ").replace(" there", " then"), []).append(stage)
    if not found:
        return f"<p>{html.escape(policy)} reads today what the champion was made from.</p>"
    told = [f"{difference} ({', '.join(stages)})" if stages else difference for difference, stages in found.items()]
    return "<p>Different since then:</p><ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in told) + "</ul>"
