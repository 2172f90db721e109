"""What is registered beside the weights: manifest, model card, input example, MLmodel, lineage, the evaluation."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines import config

LOADER = "pipelines.adapters.serving"
ADDED = ("manifest.json", "README.md", "input_example.json", "MLmodel", "lineage.json")
"""Files beside the model's own; the folder ``evaluation/`` is added too."""
SIGNATURE = {"type": "string", "required": True}


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> sha256 and bytes of every file of a model folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _described(path) for path in files}


def content_of(files: dict[str, dict[str, Any]]) -> str:
    """One hash of a manifest: equal for equal bytes under equal names."""
    lines = [f"{name} {facts['sha256']}" for name, facts in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def differing(folder: Path, files: dict[str, dict[str, Any]]) -> list[str]:
    """The files of a folder that are not what the manifest says: changed, missing, or too many."""
    present = {
        name: facts
        for name, facts in manifest(folder).items()
        if name in files or not (name in ADDED or name.startswith("evaluation/"))
    }
    return sorted(name for name in files.keys() | present.keys() if files.get(name) != present.get(name))


def write(folder: Path, root: Path, policy: str, params: config.Params, facts: dict[str, Any]) -> None:
    """Fill ``folder`` with what goes with the weights; ``facts`` is the lineage (see tasks/registry.py)."""
    example = {"columns": ["prompt"], "data": [[facts["example"]]]}
    for name, content in (("manifest.json", facts["manifest"]), ("input_example.json", example), ("lineage.json", facts)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(policy, params, facts), encoding="utf-8")
    (folder / "MLmodel").write_text(mlmodel(), encoding="utf-8")
    evaluation = root / "artifacts" / "evaluations" / policy
    if evaluation.is_dir():
        shutil.copytree(evaluation, folder / "evaluation")


def mlmodel() -> str:
    """A python_function flavor whose loader is a module of this package: nothing is pickled, the folder holds no code."""
    flavor = {"loader_module": LOADER, "python_version": platform.python_version()}
    inputs = json.dumps([{"name": "prompt", **SIGNATURE}])
    params = json.dumps([
        {"name": "temperature", "type": "double", "default": 1.0, "shape": None},
        {"name": "max_new_tokens", "type": "long", "default": 64, "shape": None},
        {"name": "seed", "type": "long", "default": 1, "shape": None},
    ])  # fmt: skip
    # JSON is YAML
    return json.dumps({
        "flavors": {"python_function": flavor},
        "mlflow_version": importlib.metadata.version("mlflow"),
        "saved_input_example_info": {"artifact_path": "input_example.json", "type": "dataframe", "pandas_orient": "split"},
        "signature": {"inputs": inputs, "outputs": json.dumps([SIGNATURE]), "params": params},
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }, indent=2)  # fmt: skip


def card(policy: str, params: config.Params, facts: dict[str, Any]) -> str:
    """The model card in Markdown, with the front matter that Hugging Face reads."""
    entry, metrics = params.policies[policy], facts["metrics"]
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in sorted(metrics.items()) if not isinstance(value, str))
    judge = f"{params.preferences.judge.kind}{' (a known gold)' if params.preferences.judge.gold else ''}"
    cost = facts["cost"]["total"]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: {_spdx(licence_of_base(params))}
---
# {params.registry.name}: {policy}

**Method.** {entry.method.upper()} on {base_name(params)} after supervised fine-tuning; it learns from `{entry.learns_from}`.
Commit `{facts["commit"]}`, tag `{facts["tag"]}`; `prefloop reproduce` makes it again.

**Data.** {source_name(params)}; preferences: {params.preferences.source}, judged by {judge}.
Hash of the prepared tables: `{facts["data"]}`.

**Licences.** Base: {licence_of_base(params)}. Data: {licence_of_data(params)}.

**Limits.** {params.registry.limits or _limits(params)}

**Cost.** {cost["seconds"]:.0f} s of stages, {cost["core_seconds"]:.0f} core-seconds,
{cost["gpu_seconds"]:.0f} GPU-seconds (stages that were cached included;
{facts["cost"]["unknown"]} stages have no record).

| metric on held-out prompts | value |
|---|---|
{rows}
"""


def base_name(params: config.Params) -> str:
    """What the model was made from, in words."""
    base = params.base
    names = {"gguf": f"{base.file} of the package {base.package}", "hub": f"{base.id} at {base.revision}"}
    return names.get(base.source, base.learns_from if base.source == "local" else "a small Llama trained from scratch")


def source_name(params: config.Params) -> str:
    """Where the text comes from, in words."""
    return (
        f"the plays of the package {params.prepare.package}" if params.prepare.source == "plays" else params.prepare.learns_from
    )


def licence_of_base(params: config.Params) -> str:
    """As params.yaml states it, else as the package does; a model from scratch has its data's."""
    if params.registry.licence_of_base or params.base.source != "gguf":
        scratch = "that of the data" if params.base.source == "scratch" else "not stated (registry.licence_of_base)"
        return params.registry.licence_of_base or scratch
    return _licence(params.base.package)


def licence_of_data(params: config.Params) -> str:
    """As params.yaml states it, else as the package does."""
    if params.registry.licence_of_data or params.prepare.source != "plays":
        return params.registry.licence_of_data or "not stated (registry.licence_of_data)"
    return _licence(params.prepare.package)


def _limits(params: config.Params) -> str:
    tokens = params.evaluate.generation.max_new_tokens
    return f"Evaluated on answers of at most {tokens} tokens to prompts like those of its data; nothing is known of others."


def _licence(package: str) -> str:
    try:
        found = importlib.metadata.metadata(package.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return f"not stated (the package {package} is not installed)"
    stated = [value for key in ("License-Expression", "License") for value in found.get_all(key) or []]
    stated += [line.rpartition("::")[2].strip() for line in found.get_all("Classifier") or [] if line.startswith("License")]
    return f"{stated[0].splitlines()[0]} (of the package {package})" if stated else f"not stated by the package {package}"


def _spdx(licence: str) -> str:
    return "apache-2.0" if licence.startswith("Apache") else "other"


def _shown(value: Any) -> str:
    return (
        " to ".join(_shown(part) for part in value) if isinstance(value, list) else f"{value:.4g}" if value is not None else "-"
    )


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
