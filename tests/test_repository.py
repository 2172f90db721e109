"""What must hold for the files of the repository themselves."""

import importlib
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_tables_are_what_the_raw_results_say() -> None:
    """docs/ and README hold exactly what benchmarks/tables.py makes of benchmarks/results."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.renewed(text) == text, f"{page.name}: run python benchmarks/tables.py"


def test_figures_are_what_the_raw_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/figures holds exactly what benchmarks/figures.py draws of benchmarks/results."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    figures = importlib.import_module("figures")
    drawn = figures.drawn()
    assert set(figures.FOLDER.glob("*")) == set(drawn)
    for path, svg in drawn.items():
        assert path.read_text(encoding="utf-8") == svg, f"{path.name}: run python benchmarks/figures.py"


def test_settings_of_benchmarks_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put into recipes; a recipe or the configuration that changes would else show after hours of measuring."""
    from pipelines.config import Params, load

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = ("iterate", "maxmin", "mixtures", "over_optimisation", "soft_prompts", "staged")
    iterate, maxmin, mixtures, over_optimisation, soft_prompts, staged = map(importlib.import_module, names)
    iterate.configure(tmp_path, 1, 96)
    assert load(tmp_path / "params.yaml").policies["ppo"].steps == 24
    over_optimisation.write(tmp_path / "params.yaml")
    assert load(tmp_path / "params.yaml").policies["ppo"].snapshot_every == 10
    assert maxmin.settings(1).policies["maxmin"].rewards[0].kind == "maxmin"
    for prompt in soft_prompts.PROMPTS:
        for model in soft_prompts.SIZES:
            base, tuned = soft_prompts.settings({"model": model, "seed": 1, "prompt": prompt})
            assert isinstance(base, Params)
            assert tuned.sft.adapter == "prompt"
    for knob in filter(None, mixtures.MIXTURES.values()):
        changed = mixtures.prepare(knob, trained=[])["prepare"]
        mixture = staged.params("flan_mixture", 1, mixtures.SETTINGS, {"prepare": changed}).prepare.mixture
        assert {name: getattr(mixture, name) for name in knob} == knob


def test_no_file_names_a_folder_of_one_machine() -> None:
    home = re.compile(r"(?<![\w.$}])/(home|root|Users|work)/\w")
    for name in TRACKED:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".sh", ".json", ""} and path.is_file():
            assert not home.search(path.read_text(encoding="utf-8", errors="replace")), name


def test_every_stage_of_the_graph_is_in_the_table_and_lists_its_code() -> None:
    """Every module that a stage's own can reach, however late it is imported; how a run is told and priced makes no result."""
    import grimp
    from ruamel.yaml import YAML

    from pipelines.stages import STAGES

    makes_no_result = {"pipelines/config_promotion.py", "pipelines/errors.py", "pipelines/journal.py"}
    imports = grimp.build_graph("pipelines", cache_dir=None)
    graph = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(graph) == list(STAGES)
    for name, entry in graph.items():
        body = entry.get("do", entry)
        own = f"pipelines.stages.{STAGES[name].module}"
        files = {_file(module) for module in imports.find_upstream_modules(own) | {own}}
        unlisted = {file for file in files if not any(file == dep or file.startswith(f"{dep}/") for dep in body["deps"])}
        assert unlisted == makes_no_result, name
        assert "constraints.txt" in body["deps"]
        assert body["cmd"].startswith(f"exec python -m pipelines {name}")


def _file(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def test_stages_that_judge_list_what_judges_are_made_of() -> None:
    """A policy's rewards and what watches it may be classifiers; constitutions label pairs and compare models."""
    from ruamel.yaml import YAML

    graph = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    judging = {name: set(entry.get("do", entry)["deps"]) for name, entry in graph.items()}
    judging = {name: deps for name, deps in judging.items() if "pipelines/judges" in deps}
    assert set(judging) == {"preferences", "policy", "evaluate_sft", "evaluate"}
    for name, deps in judging.items():
        needed = {
            "data/judges",
            "pipelines/algorithms",
            "pipelines/data",
            "pipelines/models",
            "artifacts/prepared/prompts.parquet",
        }
        assert needed | (set() if name == "policy" else {"artifacts/base", "data/constitutions"}) <= deps, name


def test_no_training_stage_lists_gold() -> None:
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- .*gold\.parquet$", text, re.MULTILINE)
    assert [line.strip() for line in listed] == ["- artifacts/preferences/gold.parquet"], "only as an output of `preferences`"
    for stage in re.split(r"\n(?=  \w+:\n)", text):
        if "pipelines/training" in stage:
            assert "- artifacts/preferences\n" not in stage


def test_every_test_that_the_docs_name_exists() -> None:
    named = {name for page in (ROOT / "docs").rglob("*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())}
    defined = {name for file in (ROOT / "tests").rglob("*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    assert "test_method_reaches_the_optimum" in named
    assert named <= defined
