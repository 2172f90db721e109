"""JSON Lines of people: what is read, and what every broken file is told."""

import json
from pathlib import Path

import pytest

from pipelines.data.jsonl import DEMONSTRATION, PREFERENCE, joined, read_jsonl
from pipelines.errors import DataError

KINDS = (PREFERENCE, DEMONSTRATION)
GOOD = b'{"prompt": "a", "completion": " b"}\n'


def _read(tmp_path: Path, content: bytes) -> list[dict[str, str]]:
    (tmp_path / "mine.jsonl").write_bytes(content)
    return read_jsonl(tmp_path / "mine.jsonl", tmp_path, KINDS)


def test_good_rows_with_bom_crlf_blank_lines_and_extra_fields(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\n" + '{"prompt": "é", "completion": "c", "x": 1}'.encode()
    assert _read(tmp_path, content) == [{"prompt": "a", "completion": " b"}, {"prompt": "é", "completion": "c"}]


def test_preferences_keep_their_group(tmp_path: Path) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "group": "anna"}
    assert _read(tmp_path, json.dumps(row).encode()) == [row]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["mine.jsonl: 0 rows"]),
        (b"\n\n \n", ["0 rows", "3 blank lines"]),
        (GOOD * 3 + b'{"prompt": "a", completion: "b"}\n', [":4:", "invalid JSON", "column 17"]),
        (GOOD * 4 + b'{"prompt": "a", "comp', [":5:", "ends inside a string (truncated file?)"]),
        (GOOD * 2 + b'["a", "b"]\n', [":3:", "expected object, got array"]),
        (b'[{"prompt": "a", "completion": "b"}]', [":1:", "got array", "one JSON object a line"]),
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', [":1:", 'duplicate key "prompt"']),
        (GOOD * 2 + b'{"prompt": "caf\xe9", "completion": "b"}\n', [":3:", "byte 0xe9", "not UTF-8", "iconv"]),
        ("{}".encode("utf-16"), ["looks like UTF-16 (BOM ff fe)"]),
        (b'{"prompt": "a\0", "completion": "b"}', [":1:", "control character"]),
        (b'{"prompt": "a\\u0000", "completion": "b"}', [":1:", "U+0000 in field prompt"]),
        (b'{"prompt": "a\\ud800", "completion": "b"}', [":1:", "lone surrogate U+D800"]),
        (b'{"prompt": "a", "completion": NaN}', [":1:", "NaN is not valid JSON"]),
        (b'{"instruction": "a", "output": "b"}', ["missing: completion, prompt", "found: instruction, output", "rename"]),
        (GOOD + b'{"prompt": "a"}\n', [":2:", "completion: missing"]),
        (GOOD + b'{"prompt": null, "completion": "b"}\n', [":2:", "prompt: expected string, got null"]),
        (GOOD + b'{"prompt": 3, "completion": "b"}\n', [":2:", "prompt: expected string, got int"]),
        (GOOD + b'{"prompt": "a", "completion": " \\n"}\n', [":2:", "completion: empty after strip"]),
        (b'{"prompt": "a", "chosen": "b ", "rejected": "b"}', [":1:", "chosen equals rejected"]),
        (b"[" * 100_000, [":1:", "invalid JSON"]),
    ],
)
def test_a_broken_file_is_told_where_and_what(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        _read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith("mine.jsonl")
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_a_missing_file_and_one_outside_the_project(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.jsonl: No such file"):
        read_jsonl(tmp_path / "mine.jsonl", tmp_path, KINDS)
    (tmp_path / "outside.jsonl").write_bytes(GOOD)
    root = tmp_path / "project"
    root.mkdir()
    (root / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    for path in (root / "link.jsonl", root / ".." / "outside.jsonl"):
        with pytest.raises(DataError, match="lies outside the project"):
            read_jsonl(path, root, KINDS)


def test_an_answer_is_parted_from_its_prompt() -> None:
    assert joined("a", "b") == " b"
    assert joined("a ", "b") == "b"
    assert joined("a", "\nb") == "\nb"
