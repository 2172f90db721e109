"""Tables: checked at load and at save, equal rows give equal bytes, a failed write leaves the old file."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from pipelines.data import schemas, tables
from pipelines.data.tables import read_blocks, read_table, whole_file, write_json, write_stream, write_table
from pipelines.errors import DataError

PAIR = {
    "id": "a",
    "prompt_id": "p",
    "prompt": "HAMLET: To be, or",
    "chosen": " not to be.",
    "rejected": " not.",
    "judge": "people",
    "group": "anna",
    "margin": float("nan"),
    "source": "mine",
    "split": "train",
    "chosen_ended": True,
    "rejected_ended": False,
}


def _pairs(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame([{**PAIR, "id": str(number), **row} for number, row in enumerate(rows)])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pairs = _pairs({}, {"margin": 0.25, "chosen": ""})
    write_table(pairs, tmp_path / "pairs.parquet", schemas.PAIRS)
    pd.testing.assert_frame_equal(read_table(tmp_path / "pairs.parquet", schemas.PAIRS), pairs)


def test_equal_rows_give_equal_bytes_whatever_their_index(tmp_path: Path) -> None:
    pairs = _pairs({}, {"prompt": "é\n"})
    write_table(pairs, tmp_path / "one", schemas.PAIRS)
    write_table(pairs.set_index(pd.Index([7, 3])), tmp_path / "two", schemas.PAIRS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_empty_table_has_the_columns_and_types_of_its_schema(tmp_path: Path) -> None:
    write_table(pd.DataFrame(), tmp_path / "pairs.parquet", schemas.PAIRS)
    assert list(read_table(tmp_path / "pairs.parquet", schemas.PAIRS)) == list(schemas.empty(schemas.PAIRS))


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (_pairs({}, {"rejected": " not to be."}), ["rows: chosen equals rejected in 1 rows, the first are [1]"]),
        (_pairs({"split": "dev"}), ["split:", "train", "[0]"]),
        (_pairs({"prompt": " \n"}), ["prompt: empty after strip", "[0]"]),
        (_pairs({"prompt": None}), ["prompt: not_nullable", "[0]"]),
        (_pairs({"id": "x"}, {"id": "x"}), ["id: field_uniqueness", "[0, 1]"]),
        (_pairs({}).drop(columns="judge"), ["judge"]),
        (_pairs({}).assign(extra=1), ["extra"]),
        (_pairs({}).assign(margin="much"), ["margin: dtype"]),
    ],
)
def test_a_broken_table_is_named_with_column_and_rows(tmp_path: Path, rows: pd.DataFrame, parts: list[str]) -> None:
    path = tmp_path / "artifacts" / "pairs.parquet"
    with pytest.raises(DataError) as caught:
        write_table(rows, path, schemas.PAIRS)
    message = str(caught.value)
    assert message.startswith("artifacts/pairs.parquet: ")
    assert "\n" not in message
    assert all(part in message for part in parts), message
    assert not path.exists()


def test_a_table_that_was_broken_outside_is_refused_at_load(tmp_path: Path) -> None:
    write_table(_pairs({"split": "dev"}), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="split"):
        read_table(tmp_path / "pairs.parquet", schemas.PAIRS)
    (tmp_path / "no.parquet").write_bytes(b"text")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_table(tmp_path / "no.parquet", schemas.PAIRS)
    with pytest.raises(DataError, match="no such table"):
        read_table(tmp_path / "missing.parquet", schemas.PAIRS)


def test_json_has_sorted_keys_and_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "facts.json", {"b": 1, "a": "é"})
    assert (tmp_path / "facts.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "facts.json", {"a": float("nan")})


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"old": 1})

    def fail_halfway() -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail_halfway()
    assert "old" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def _blocks(frame: pd.DataFrame, size: int) -> list[pa.Table]:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]


def test_a_stream_has_the_bytes_of_its_rows_whatever_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = _pairs(*({"prompt": f"é {number} " + "word " * number} for number in range(50)))
    write_table(pairs, tmp_path / "whole", schemas.PAIRS)
    for size in (50, 7):
        assert write_stream(_blocks(pairs, size), tmp_path / "stream", schemas.PAIRS) == 50
        assert (tmp_path / "stream").read_bytes() == (tmp_path / "whole").read_bytes()
    monkeypatch.setattr(tables, "GROUP", 20)
    for size in (50, 7, 1):
        write_stream(_blocks(pairs, size), tmp_path / f"groups{size}", schemas.PAIRS)
        assert (tmp_path / f"groups{size}").read_bytes() == (tmp_path / "groups50").read_bytes()
    pd.testing.assert_frame_equal(read_table(tmp_path / "groups7", schemas.PAIRS), pairs)
    pd.testing.assert_frame_equal(pd.concat(read_blocks(tmp_path / "groups7", 9), ignore_index=True), pairs)


def test_an_empty_stream_is_an_empty_table(tmp_path: Path) -> None:
    write_table(pd.DataFrame(), tmp_path / "whole", schemas.PAIRS)
    assert write_stream([], tmp_path / "stream", schemas.PAIRS) == 0
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "whole").read_bytes()
    assert [list(block) for block in read_blocks(tmp_path / "stream")] == [list(schemas.empty(schemas.PAIRS))]


def test_every_block_of_a_stream_is_checked(tmp_path: Path) -> None:
    pairs = _pairs(*({} for _ in range(20)))
    path = tmp_path / "artifacts" / "pairs.parquet"
    pairs.loc[17, "split"] = "dev"
    with pytest.raises(DataError, match=r"artifacts/pairs.parquet: split: .* in 1 rows, the first are \[17\]"):
        write_stream(_blocks(pairs, 5), path, schemas.PAIRS)
    pairs.loc[17, ["split", "id"]] = ["test", "3"]
    with pytest.raises(DataError, match="artifacts/pairs.parquet: id: field_uniqueness in 1 rows"):
        write_stream(_blocks(pairs, 5), path, schemas.PAIRS)
    assert not path.exists()


def test_an_optional_column_of_some_blocks_is_null_in_the_others(tmp_path: Path) -> None:
    blocks = _blocks(_pairs({}), 1) + _blocks(_pairs({}).assign(id="other", annotator="eva", weight=0.5), 1)
    write_stream(blocks, tmp_path / "pairs.parquet", schemas.PAIRS, ["annotator", "weight"])
    found = read_table(tmp_path / "pairs.parquet", schemas.PAIRS)
    assert found["annotator"].isna().tolist() == [True, False]
    assert found["weight"].tolist()[1] == 0.5
