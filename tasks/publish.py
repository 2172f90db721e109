"""What a flow run leaves for people: MLflow's parent run, the summary in Prefect, the report page with its lineage.

Lineage (commit, hashes, run ids) is added here, after DVC, to an unhashed copy: outputs hold content only.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.adapters.spool import page_of
from tasks import locks, versions

PAGE = Path(".runs/report/index.html")
SEEDS = Path(".runs/seeds.json")
MEASURES = {"gold_mean": "gold score", "reward_mean": "reward", "kl": "KL, nats", "win_rate": "win rate"}
LAST = "report"
"""The stage whose outputs are published; a run of other stages alone publishes nothing."""


@contextmanager
def parent_run(root: Path, plan: versions.Plan, tags: dict[str, str]) -> Iterator[str]:
    """The MLflow run that the stages nest under, only where a stage will really run; yields its id, or ""."""
    if not plan.names("run"):
        yield ""
        return
    from pipelines.adapters import tracking

    with tracking.parent(root, "train", tags) as run_id:
        yield run_id


def summary(root: Path) -> str:
    """The summary in Markdown, published as the Prefect artifact ``summary`` of the flow run; "" without a report."""
    from prefect.artifacts import create_markdown_artifact

    from pipelines.evaluation import summary as made

    path = root / "artifacts" / "report" / "metrics.json"
    if not path.exists():
        return ""
    markdown = made.markdown(made.load(path))
    create_markdown_artifact(markdown, key="summary", description="Policies against the SFT model, on held-out prompts")
    return markdown


def report(root: Path, mlflow_run: str, flow_run: str) -> Path | None:
    """Write ``.runs/report/index.html``: the report, what has changed since the champion, and where it comes from.

    None without a report.
    """
    from tasks import since

    source = root / "artifacts" / "report" / "index.html"
    if not source.exists():
        return None
    mlflow_run = mlflow_run or _recorded_run(root)
    rows, shown = lineage(root, mlflow_run, flow_run), pages(root, mlflow_run, flow_run)
    cells = "".join(f"<dt>{html.escape(name)}</dt><dd>{_cell(value, shown.get(name, ''))}</dd>" for name, value in rows.items())
    box = f'{seeds(root)}{since.section(root)}<section id="lineage"><h2>Where this page comes from</h2><dl>{cells}</dl></section>'
    before, mark, after = source.read_text(encoding="utf-8").rpartition("</body>")
    return _write(root, before + box + mark + after if mark else after + box)


def seeds(root: Path) -> str:
    """Every seed of ``prefloop run --seeds`` with mean and spread as a section of the page; "" where other parameters ran."""
    path = root / SEEDS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("parameters") != parameters(root) or not found.get("summary"):
        return ""
    reports = {seed: entry["report"] for seed, entry in found["seeds"].items() if entry["report"]}
    rows: list[tuple[str, ...]] = []
    for name, summed in sorted(found["summary"].items()):
        shown = [(f"seed {seed}", report["policies"][name]) for seed, report in reports.items() if name in report["policies"]]
        shown += [(word, {key: of[word] for key, of in summed.items()}) for word in ("mean", "spread")]
        rows += [(name, label, *(f"{values[key]:.3f}" for key in MEASURES)) for label, values in shown]
    head = "".join(f'<th class="n">{label}</th>' for label in MEASURES.values())
    body = ""
    for name, label, *values in rows:
        cells = "".join(f'<td class="n">{value}</td>' for value in values)
        body += f'<tr><th scope="row">{html.escape(name)}</th><td>{label}</td>{cells}</tr>'
    failed = [f"seed {seed}: ended with {entry['exit_code']}" for seed, entry in found["seeds"].items() if entry["exit_code"]]
    return (
        f'<section id="seeds"><h2>Over {len(reports)} seeds</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Seeds">'
        f'<table class="figures"><thead><tr><th></th><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<p>{html.escape('; '.join(failed))}</p></section>"
    )


def renew_seeds(root: Path) -> None:
    """Put the section of seeds into the page that is there."""
    page = root / PAGE
    if page.exists():
        bare = re.sub(r'<section id="seeds">.*?</section>', "", page.read_text(encoding="utf-8"), flags=re.S)
        before, mark, after = bare.rpartition('<section id="lineage">')
        _write(root, before + seeds(root) + mark + after)


def parameters(root: Path) -> str:
    """The hash of params.yaml without its seed: what all seeds of a run share."""
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return hashlib.sha256(re.sub(r"(?m)^seed:.*\n?", "", text).encode()).hexdigest()


def lineage(root: Path, mlflow_run: str, flow_run: str) -> dict[str, str]:
    """Which code, parameters and results, and which runs."""
    rows = {"commit": commit(root)}
    for name in ("dvc.lock", "params.yaml"):
        path = root / name
        if path.exists():
            rows[f"{name} (sha256)"] = hashlib.sha256(path.read_bytes()).hexdigest()
    lock = locks.parse((root / "dvc.lock").read_text(encoding="utf-8")) if (root / "dvc.lock").exists() else {}
    if "prepare" in lock:
        rows["prepared data (sha256)"] = locks.digest(locks.hashes(lock, "prepare"))
    return rows | {
        "MLflow run": mlflow_run or "none: no stage ran",
        "Prefect flow run": flow_run or "none: everything was up to date",
    }


def pages(root: Path, mlflow_run: str, flow_run: str) -> dict[str, str]:
    """Where the two runs of ``lineage`` are shown: on the servers that are configured, else by `make ui`."""
    found = {"MLflow run": page_of(root, mlflow_run)} if mlflow_run else {}
    if flow_run:
        from prefect.utilities.urls import url_for

        found["Prefect flow run"] = url_for("flow-run", obj_id=flow_run) or ""
    return found


def _cell(value: str, page: str) -> str:
    """A value, as a link where it has a page."""
    code = f"<code>{html.escape(value)}</code>"
    note = ' <span class="quiet">(while <code>make ui</code> runs)</span>' if page.startswith("http://127.0.0.1") else ""
    return f'<a href="{html.escape(page)}">{code}</a>{note}' if page else code


def commit(root: Path) -> str:
    """The git commit, and whether code differs from it (params.yaml and dvc.lock may)."""
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!params.yaml", ":!dvc.lock")
    return f"{head} with uncommitted changes" if head and changed else head or "unknown: not a git repository"


def _write(root: Path, text: str) -> Path:
    page = root / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    fresh = page.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(page)
    return page


def _recorded_run(root: Path) -> str:
    """The MLflow run that made the present report, found by the hash of its outputs; "" where there is none."""
    if not (root / "mlflow.db").exists() and "MLFLOW_TRACKING_URI" not in os.environ:
        return ""
    from pipelines.adapters import tracking

    return tracking.find_run(root, "report", tracking.outs_hash(versions.outs(root, "report")))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
