"""``prefloop data``: a set is brought in and versioned by a real DVC, checked, shown and compared."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from flows import external
from flows.__main__ import parser
from flows.pipeline_commands import FORMATS
from pipelines.__main__ import run_command
from pipelines.config.data import Format
from pipelines.data.tables import write_table
from pipelines.errors import ConfigurationError, DataError
from tasks import repository
from tests.data.test_bad_files import good, lines
from tests.project import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty git and DVC repository with the project's .gitignore."""
    root = tmp_path / "project"
    root.mkdir()
    (root / ".gitignore").write_text((ROOT / ".gitignore").read_text(encoding="utf-8"), encoding="utf-8")
    _run(root, "git", "init", "--quiet")
    _run(root, "git", "config", "user.email", "test@example.org")
    _run(root, "git", "config", "user.name", "test")
    _run(root, sys.executable, "-m", "dvc", "init", "--quiet", "--force")
    return root


def _run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, env=repository.environment(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _said(root: Path, *arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_command("data", arguments, root)
    return code, out.getvalue()


def test_a_set_is_copied_versioned_and_described(project: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.jsonl").write_bytes(lines(good()))
    path = external.add(project, tmp_path / "mine", "", "github.com/a/b at 0123abc", "MIT")
    assert path == Path("data/external/mine")
    assert (project / path / "rows.jsonl").read_bytes() == lines(good())
    facts = YAML(typ="safe").load((project / "data/external/mine.dvc").read_text())
    assert facts["meta"] == {"source": "github.com/a/b at 0123abc", "licence": "MIT"}
    assert facts["outs"][0]["md5"].endswith(".dir")
    status = _run(project, "git", "status", "--porcelain", "--untracked-files=all").splitlines()
    assert "?? data/external/mine.dvc" in status, "the description is committed"
    assert not [line for line in status if "rows.jsonl" in line], "the rows are not"
    assert _run(project, sys.executable, "-m", "dvc", "status", "data/external/mine.dvc").strip().endswith("up to date.")
    with pytest.raises(ConfigurationError, match="is there already"):
        external.add(project, tmp_path / "mine", "", "x", "MIT")
    code, said = _said(project, "check", str(project / path))
    assert (code, "ok: 30 rows" in said) == (0, True), said


def test_what_dvc_imports_is_a_source_as_well(project: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(good()))
    (project / "data/external").mkdir(parents=True)
    _run(project, sys.executable, "-m", "dvc", "import-url", "--quiet", str(tmp_path / "rows.jsonl"), "data/external/rows.jsonl")
    code, said = _said(project, "check", str(project / "data/external/rows.jsonl"))
    assert (code, "ok: 30 rows" in said) == (0, True), said


def test_what_cannot_be_added_is_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(good()))
    with pytest.raises(DataError, match="No such file"):
        external.add(project, tmp_path / "missing.jsonl", "", "x", "MIT")
    with pytest.raises(ConfigurationError, match="letters, digits"):
        external.add(project, tmp_path / "rows.jsonl", "../x", "x", "MIT")
    with pytest.raises(ConfigurationError, match="under which terms"):
        external.add(project, tmp_path / "rows.jsonl", "", "x", " ")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="symbolic link"):
        external.add(project, tmp_path / "link.jsonl", "", "x", "MIT")
    assert not (project / "data" / "external").exists()


def _prompts(root: Path, count: int, **more: object) -> None:
    rows = [
        {"id": f"r{n}", "prompt": f"Question {n}?", "source": "mine" if n < 30 else "new", "split": "train"} | more
        for n in range(count)
    ]
    write_table(pd.DataFrame(rows), root / "artifacts/prepared/prompts.parquet")


def test_tables_are_shown_and_compared_with_a_revision(project: Path) -> None:
    _prompts(project, 30)
    (project / ".gitignore").write_text("", encoding="utf-8")
    _run(project, sys.executable, "-m", "dvc", "add", "--quiet", "artifacts/prepared/prompts.parquet")
    _run(project, "git", "add", "-A")
    _run(project, "git", "commit", "--quiet", "-m", "first")
    code, said = _said(project, "show", "--examples", "1")
    assert (code, said.splitlines()[:2]) == (0, ["prompts: 30 rows", "  mine: train 30, validation 0, test 0"])
    assert json.loads(said.splitlines()[2]) == {"prompt": "Question 0?"}
    (project / "artifacts/prepared/prompts.parquet").unlink()
    _prompts(project, 40)
    code, said = _said(project, "diff", "HEAD")
    assert code == 0, said
    assert "prompts: 30 -> 40 rows, 10 added, 0 removed" in said
    assert "source: PSI 2.027 (drifted" in said, "0.25 ln(1 / 0.75) + 0.2499 ln(0.25 / 0.0001) = 2.027"
    (project / "artifacts/prepared/prompts.parquet").unlink()
    _prompts(project, 40, label=True)
    code, said = _said(project, "diff", "HEAD")
    assert (code, "error: schema-drift: prompts: columns added: label" in said) == (2, True), said
    code, said = _said(project, "diff", "no-such-revision")
    assert (code, "no-such-revision" in said) == (3, True), said


def test_a_file_whose_columns_have_drifted_since_it_was_added_is_named(project: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "completion": "a", "margin": 1} for n in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "drifted_schema.parquet")
    path = project / external.add(project, tmp_path / "drifted_schema.parquet", "", "mine", "MIT")
    _run(project, "git", "add", "-A")
    _run(project, "git", "commit", "--quiet", "-m", "first")
    assert _said(project, "diff", "HEAD") == (0, "data/external/drifted_schema.parquet: 30 -> 30 rows\n")
    changed = [{"prompt": row["prompt"], "answer": "a", "margin": "1"} for row in rows[:20]]
    path.unlink()
    pq.write_table(pa.Table.from_pylist(changed), path)
    code, said = _said(project, "diff", "HEAD")
    assert (code, "error: schema-drift: " in said, "30 -> 20 rows" in said) == (2, True, True), said
    for part in ("columns added: answer", "columns removed: completion", "columns retyped: margin (int64 -> string)"):
        assert f"data/external/drifted_schema.parquet: {part}" in said
    path.write_bytes(b"PAR1")
    code, said = _said(project, "diff", "HEAD")
    assert (code, "error: bad-parquet" in said) == (2, True), said


def test_wrong_arguments_are_errors_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(good()))
    code, said = _said(tmp_path, "check", str(tmp_path / "rows.jsonl"), "--columns", "promt=x")
    assert (code, "'promt' is none of ours" in said) == (3, True)
    code, said = _said(tmp_path, "check", str(tmp_path / "rows.jsonl"), "--columns", "prompt")
    assert (code, "--columns prompt: expected OURS=THEIRS" in said) == (3, True)
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(["data", "check", "a.jsonl", "--format", "preferences"])
    assert stopped.value.code == 3
    assert "invalid choice: 'preferences'" in capsys.readouterr().err
    assert (*get_args(Format),) == (*FORMATS, "template")


def test_show_without_tables_says_how_to_make_them(tmp_path: Path) -> None:
    code, said = _said(tmp_path, "show")
    assert (code, "prefloop run --only prepare" in said) == (2, True)
    (tmp_path / "artifacts/prepared").mkdir(parents=True)
    (tmp_path / "artifacts/prepared/prompts.parquet").write_bytes(b"text")
    code, said = _said(tmp_path, "show")
    assert (code, "prepared/prompts.parquet: not a readable Parquet file" in said) == (2, True), said


def test_show_counts_by_source_or_by_group(tmp_path: Path) -> None:
    _prompts(tmp_path, 40)
    corpus = [{"id": f"p{n}", "group": f"play {n % 2}", "split": "test" if n else "train", "text": "x" * 100} for n in range(4)]
    write_table(pd.DataFrame(corpus), tmp_path / "artifacts/prepared/corpus.parquet")
    code, said = _said(tmp_path, "show", "--examples", "0")
    expected = ["prompts: 40 rows", "  mine: train 30, validation 0, test 0", "  new: train 10, validation 0, test 0"]
    expected += ["corpus: 4 rows", "  play 0: train 1, validation 0, test 1", "  play 1: train 0, validation 0, test 2"]
    assert (code, said.splitlines()) == (0, expected)


def test_the_callers_paths_are_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = parser().parse_args(["data", "check", "a.jsonl", "test=b.jsonl", "--columns", "prompt=q"])
    assert options.paths == [str(tmp_path / "a.jsonl"), f"test={tmp_path / 'b.jsonl'}"]
    assert options.columns == ["prompt=q"]
