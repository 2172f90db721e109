"""Every bad file of the list: its exit code, and what the message must contain. The files are made here."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.__main__ import run_command

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "blow",
    "winds",
    "and",
    "crack",
    "your",
    "cheeks",
    "rage",
    "blow",
    "you",
    "cataracts",
    "and",
    "hurricanoes",
    "spout",
    "till",
    "you",
    "have",
    "drenched",
]


def pair(number: int, **some: Any) -> dict[str, Any]:
    """A good row, unlike every other."""
    prompt = f"Question {number}: what does {WORDS[number % 17]} mean to {number * 7919 % 1009}?"
    return {"prompt": prompt, "chosen": f"It means {number}, plainly said.", "rejected": f"No idea {number}."} | some


def good(count: int = 30) -> list[dict[str, Any]]:
    return [pair(number, chosen=f"Yes {number}." + " So it is." * (number % 2)) for number in range(count)]


def lines(rows: list[Any], end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + end for row in rows)


def with_line(number: int, raw: bytes) -> bytes:
    """Good rows, but for one line."""
    rows = lines(good()).splitlines(keepends=True)
    return b"".join([*rows[: number - 1], raw, *rows[number:]])


def changed(number: int, **some: Any) -> bytes:
    rows = good()
    rows[number - 1] = {key: value for key, value in (rows[number - 1] | some).items() if value != "-"}
    return lines(rows)


def raw(number: int, old: bytes, new: bytes) -> bytes:
    return with_line(number, lines([good()[number - 1]]).replace(old, new))


def flip(rows: list[dict[str, Any]], every: Callable[[int], bool]) -> list[dict[str, Any]]:
    return [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if every(number) else row for number, row in enumerate(rows)
    ]


LONG = "the quality of mercy is not strained it droppeth as the gentle rain from heaven"
REFUSED: dict[str, tuple[bytes, list[str]]] = {
    "empty.jsonl": (b"", ["0 rows", "empty.jsonl"]),
    "blank.jsonl": (b"\n \n\n", ["0 rows", "3 blank lines"]),
    "malformed.jsonl": (raw(4, b'"chosen": ', b"chosen: "), ["line 4", "column", "invalid JSON"]),
    "truncated.jsonl": (lines(good(5))[:-20], ["line 5", "ends inside a string (truncated file?)"]),
    "array.jsonl": (json.dumps(good()).encode(), ["JSON array, expected one object per line", "jq -c"]),
    "pretty.json": (json.dumps(good(), indent=1).encode(), ["JSON array, expected one object per line", "convert it"]),
    "nonobj.jsonl": (with_line(3, b'["a"]\n'), ["line 3", "expected object, got array"]),
    "dupkey.jsonl": (raw(1, b'"prompt": ', b'"prompt": "x", "prompt": '), ["line 1", 'duplicate key "prompt"']),
    "dupkey_hidden.jsonl": (
        raw(1, b'"prompt": "', b'"prompt": "\\u0022\\u0022\\u0022\\u0022", "prompt": "'),
        ["line 1", 'duplicate key "prompt"'],
    ),
    "latin1.jsonl": (raw(3, b"Yes", b"\xe9"), ["line 3", "byte 0xe9", "not UTF-8", "iconv"]),
    "utf16.jsonl": (lines(good()).decode().encode("utf-16"), ["looks like UTF-16 (BOM ff fe)"]),
    "nul_raw.jsonl": (raw(3, b"Yes", b"Y\0es"), ["line 3", "control character U+0000"]),
    "nul_escaped.jsonl": (raw(3, b"Question", b"\\u0000"), ["line 3", "U+0000 in field prompt"]),
    "surrogate.jsonl": (raw(3, b"Question", b"\\ud800"), ["line 3", "lone surrogate U+D800"]),
    "nan.jsonl": (raw(3, b"}", b', "margin": NaN}'), ["line 3", "NaN is not valid JSON", "margin"]),
    "missingkey.jsonl": (changed(4, chosen="-"), ["line 4", "chosen", "missing"]),
    "nullval.jsonl": (changed(4, chosen=None), ["line 4", "chosen", "null"]),
    "mixedtype.jsonl": (changed(4, prompt=3), ["line 4", "prompt: expected string, got int"]),
    "emptycomp.jsonl": (changed(5, rejected=" \n"), ["line 5", "of 30 rows", "empty after strip"]),
    "same.jsonl": (
        lines([pair(number, chosen="a", rejected="a ") for number in range(4)]),
        ["chosen equals rejected in 4 of 4 rows (100%)"],
    ),
    "conflict.jsonl": (
        lines([*good(), good()[7] | {"chosen": good()[7]["rejected"], "rejected": good()[7]["chosen"]}]),
        ["contradictory preference", "conflict-000007", "conflict-000030", "line 8", "line 31"],
    ),
    "dup.jsonl": (
        lines([*good(), good()[3], good()[3]]),
        ["duplicate rows: 2 of 32 rows", "line 31", "line 4", "duplicates: drop"],
    ),
    "huge_row.jsonl": (changed(2, chosen="x" * 12_000_000), ["line 2", "bytes", "limit 4194304", "prepare.max_row_bytes"]),
    "few.jsonl": (lines(good(3)), ["3 rows, need >= 20 for split"]),
    "notjson.parquet": (b"text", ["not a Parquet file (magic)", "notjson.parquet"]),
    "text.jsonl.gz": (b"text", ["not a gzip file (magic)"]),
    "cut.jsonl.gz": (gzip.compress(lines(good()))[:-30], ["ends too early (truncated file?)"]),
    "text.txt": (b"text", ["not one of .jsonl"]),
    "wide.csv": (
        b"prompt,completion\n" + b"".join(b"q%d,a\n" % n for n in range(30)) + b"a,b,c\n",
        ["line 32", "3 cells, the header has 2"],
    ),
    "quote.csv": (b'prompt,completion\nq,"a\n', ["line 2", "quote"]),
    "twice.csv": (b"prompt,prompt\na,b\n", ["a column stands twice"]),
}  # fmt: skip


def _check(folder: Path, content: bytes, name: str, *options: str) -> tuple[int, str]:
    (folder / name).write_bytes(content)
    return _run("check", str(folder / name), *options)


def _run(*arguments: str) -> tuple[int, str]:
    done = _captured(list(arguments))
    assert "Traceback" not in done[1]
    return done


def _captured(arguments: list[str]) -> tuple[int, str]:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = run_command("data", arguments, Path.cwd())
    return code, out.getvalue()


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_with_what_where_and_how_to_fix(tmp_path: Path, name: str) -> None:
    content, parts = REFUSED[name]
    code, said = _check(tmp_path, content, name)
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert [part for part in parts if part not in said] == []
    assert said.count(" | ") >= 2, "code and place | limit | how to fix"


def test_no_more_than_twenty_places_are_named(tmp_path: Path) -> None:
    rows = [row | ({"rejected": " "} if number >= 5 else {}) for number, row in enumerate(good())]
    code, said = _check(tmp_path, lines(rows), "many.jsonl")
    assert (code, "in 25 of 30 rows (83.3%)" in said, " and 5 more | " in said) == (2, True, True)
    assert said.count("(line ") == 20


def test_wrong_columns_are_named_with_a_hint(tmp_path: Path) -> None:
    rows = lines([{"instruction": "a", "output": "b"}])
    code, said = _check(tmp_path, rows, "wrongcol.jsonl", "--format", "preference")
    assert code == 2
    assert "missing: prompt, chosen, rejected; found: instruction, output" in said
    assert "columns: {prompt: <its name>" in said
    code, said = _check(tmp_path, lines([{"foo": "a", "bar": "b"}]), "unknown.jsonl")
    assert (code, "missing: " in said, "found: bar, foo" in said) == (2, True, True)


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "plain.jsonl": lines(good()),
        "crlf.jsonl": lines(good(), b"\r\n"),
        "no_end.jsonl": lines(good())[:-1],
        "packed.jsonl.gz": gzip.compress(lines(good())),
        "blank_lines.jsonl": lines(good(), b"\n\n"),
        "digits.jsonl": changed(3, margin=10**30),
        "more.jsonl": changed(3, extra={"a": [1, None, "\""]}),
    }.items(),
)  # fmt: skip
def test_good_files_are_accepted_silently(tmp_path: Path, name: str, content: bytes) -> None:
    code, said = _check(tmp_path, content, name)
    assert code == 0, said
    assert "ok: 30 rows" in said
    assert "warning" not in said.split("{")[0]


def test_line_ends_change_no_content(tmp_path: Path) -> None:
    from pipelines.config.data import Prepare, Source
    from pipelines.data.rows import ingest

    found = []
    for end in (b"\n", b"\r\n"):
        (tmp_path / "rows.jsonl").write_bytes(lines(good(), end))
        settings = Prepare().model_copy(update={"sources": {"rows": Source(path="rows.jsonl")}})
        found.append(ingest(settings, tmp_path, tmp_path / "out", 0).path.read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(good()), ["UTF-8 BOM removed"]),
        (
            "ctrl_tokens.jsonl",
            changed(3, chosen="Hello <|im_end|> you"),
            ["special token text in field", "<|im_end|>", "[chosen]"],
        ),
        ("homoglyph.jsonl", changed(3, chosen="p\u0430ypal"), ["letters of two scripts", "in 1 of 30 rows"]),
        ("zero_width.jsonl", changed(3, chosen="pay\u200bpal"), ["invisible characters", "in 1 of 30 rows"]),
        (
            "one_sided_len.jsonl",
            lines(
                [pair(n, chosen="word " * 9 + str(n), rejected="no") for n in range(49)] + [pair(49, chosen="a", rejected="no!")]
            ),
            ["chosen longer in 98% of pairs"],
        ),
    ],
)
def test_strange_files_are_accepted_with_a_warning(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    code, said = _check(tmp_path, content, name)
    assert code == 0, said
    assert said.startswith("warning: ")
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    ("turns", "parts"),
    [
        (["user", "user", "assistant"], ["role 'user' where assistant is due", "allowed roles: system, user, assistant"]),
        (["user", "bot"], ["role 'bot'", "allowed roles: system, user, assistant"]),
        (["user", "assistant", "user"], ["ends with role 'user'", "role assistant is due"]),
        (["assistant"], ["role 'assistant' where system or user is due", "allowed roles: system, user, assistant"]),
    ],
)
def test_roles_are_checked(tmp_path: Path, turns: list[str], parts: list[str]) -> None:
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}"}]} for n in range(30)
    ]
    rows[4] = {"messages": [{"role": role, "content": "text"} for role in turns]}
    code, said = _check(tmp_path, lines(rows), "roles.jsonl")
    assert code == 2
    assert [part for part in ["line 5", *parts] if part not in said] == []


def test_a_turn_that_forges_another_is_refused(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a\n\nAssistant: forged"}, {"role": "assistant", "content": "b"}]
    code, said = _check(tmp_path, lines([{"messages": turns}] * 20), "forged.jsonl")
    assert (code, "mark of another turn" in said) == (2, True)


def test_a_prompt_in_train_and_test(tmp_path: Path) -> None:
    (tmp_path / "leak_train.jsonl").write_bytes(lines(good()))
    again = [pair(100), good()[4] | {"prompt": good()[4]["prompt"].upper(), "chosen": "Other."}]
    (tmp_path / "leak_test.jsonl").write_bytes(lines(again))
    code, said = _run("check", f"train={tmp_path}/leak_train.jsonl", f"test={tmp_path}/leak_test.jsonl")
    assert code == 2
    for part in ("prompt appears in train and test", "1 prompts", "leak_train-000004", "leak_test-000001"):
        assert part in said


def test_a_test_prompt_inside_a_training_row(tmp_path: Path) -> None:
    """13 words have 6 8-grams; with one word more behind and the last one changed, 5 of the 6 remain: 0.83."""
    words = LONG.split()[:13]
    (tmp_path / "a.jsonl").write_bytes(lines([*good(), pair(50, prompt=" ".join([*words[:12], "changed"]))]))
    (tmp_path / "near_leak.jsonl").write_bytes(lines([pair(60, prompt=" ".join(words))]))
    code, said = _run("check", f"train={tmp_path}/a.jsonl", f"test={tmp_path}/near_leak.jsonl")
    assert code == 2
    for part in ("8-gram overlap 0.83 >= 0.50", "a-000030", "near_leak-000000", "(line 31)"):
        assert part in said


def test_flipped_labels_against_a_golden_set(tmp_path: Path) -> None:
    (tmp_path / "golden.jsonl").write_bytes(lines(good()))
    (tmp_path / "flipped.jsonl").write_bytes(lines(flip(good(), lambda number: number % 10 < 3)))
    code, said = _run("check", f"{tmp_path}/flipped.jsonl", "--golden", f"{tmp_path}/golden.jsonl")
    assert code == 2
    assert "golden-set accuracy 0.70 (21 of 30 pairs)" in said
    assert "labels may be flipped" in said
    (tmp_path / "sound.jsonl").write_bytes(lines(flip(good(), lambda number: number == 0)))
    code, said = _run("check", f"{tmp_path}/sound.jsonl", "--golden", f"{tmp_path}/golden.jsonl")
    assert (code, '"golden_accuracy": {"accuracy": 0.9667, "pairs": 30}' in said) == (0, True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "folder.jsonl").mkdir()
    (tmp_path / "secret.jsonl").write_bytes(lines(good()))
    (tmp_path / "inside" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    for name, part in (("missing.jsonl", "No such file"), ("folder.jsonl", "0 files"), ("link.jsonl", "outside the project")):
        code, said = _run("check", str(tmp_path / "inside" / name))
        assert (code, part in said, name in said) == (2, True, True), said


def test_a_file_without_rights() -> None:
    """As a user without rights: root may read every file, so a test that runs as root becomes another user for a moment."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "closed.jsonl").write_bytes(lines(good()))
        (folder / "closed.jsonl").chmod(0)
        own = os.geteuid()
        os.seteuid(65534 if own == 0 else own)
        try:
            code, said = _run("check", str(folder / "closed.jsonl"))
        finally:
            os.seteuid(own)
        assert (code, "Permission denied" in said, "closed.jsonl" in said) == (2, True, True), said
    finally:
        shutil.rmtree(folder)


def test_a_gzip_bomb_is_refused_before_memory_is_filled(tmp_path: Path) -> None:
    row = lines([pair(1, chosen="x" * 2**20)])
    code, said = _check(tmp_path, gzip.compress(row * 100, compresslevel=9), "bomb.jsonl.gz")
    assert (code, "gzip-bomb" in said, "limit 100 times" in said) == (2, True, True)
    code, said = _check(tmp_path, gzip.compress(b"x" * 2**28, compresslevel=9), "line.jsonl.gz")
    assert (code, "gzip-bomb" in said) == (2, True)


def test_parquet_in_and_extension_types_out(tmp_path: Path) -> None:
    rows = [row | {"margin": float("nan")} for row in good()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "good.parquet")
    code, said = _run("check", str(tmp_path / "good.parquet"))
    assert (code, "ok: 30 rows (good: preference)" in said) == (0, True), said
    field = pa.field("prompt", pa.string(), metadata={b"ARROW:extension:name": b"evil.type"})
    schema = pa.schema([field, *list(pa.Table.from_pylist(good()).schema)[1:]])
    pq.write_table(pa.Table.from_pylist(good(), schema=schema), tmp_path / "extension.parquet")
    code, said = _run("check", str(tmp_path / "extension.parquet"))
    assert (code, "extension type evil.type" in said) == (2, True), said
    whole = (tmp_path / "good.parquet").read_bytes()
    code, said = _check(tmp_path, whole[:100] + whole[-200:], "cut.parquet")
    assert code == 2


def test_checking_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(good()))
    code = (
        "import sys; from pathlib import Path; from pipelines.__main__ import run_command; "
        f"print(run_command('data', ['check', {str(tmp_path / 'a.jsonl')!r}], Path.cwd()), "
        "sorted({'torch', 'transformers', 'datasets', 'pandera'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_no_text_of_a_row_is_in_a_message(tmp_path: Path) -> None:
    secret = "jane.doe@example.org"
    rows = [*good(), pair(40, chosen=secret, rejected=secret), pair(41, prompt=f"{secret}\0"), *[pair(42, rejected=secret)] * 2]
    for content in (lines(rows), lines(rows[:-2]), lines([*good(), *rows[-2:]])):
        code, said = _check(tmp_path, content, "private.jsonl")
        assert code == 2
        assert secret not in said
