from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from stillhouse.data.rows import read_rows
from stillhouse.mistakes import LONGEST_LINE, Mistake

ROWS = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": ["d", "e"]}, {"text": "f\u2028g"}]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def said(source: Path | str, **options: object) -> str:
    with pytest.raises(Mistake) as caught:
        read_rows(source, **options)  # type: ignore[arg-type]
    assert len(str(caught.value)) <= LONGEST_LINE
    return str(caught.value)


def test_jsonl_rows_know_their_lines(tmp_path: Path):
    path = write(tmp_path / "train.jsonl", lines(ROWS[0]) + "\n" + lines(*ROWS[1:]))
    rows = read_rows(path)
    assert [row.fields for row in rows] == ROWS
    assert [row.origin for row in rows] == [f"{path}:1", f"{path}:3", f"{path}:4"]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_row(tmp_path: Path):
    text = lines(*ROWS).replace("\n", "\r\n").encode("utf-8-sig")
    assert [row.fields for row in read_rows(write(tmp_path / "a.jsonl", text))] == ROWS


def test_json_and_parquet_hold_the_same_rows(tmp_path: Path):
    as_json = write(tmp_path / "a.json", json.dumps(ROWS, indent=2))
    uniform = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": None}]
    parquet.write_table(pa.Table.from_pylist(uniform), tmp_path / "a.parquet")
    assert [row.fields for row in read_rows(as_json)] == ROWS
    assert [row.fields for row in read_rows(tmp_path / "a.parquet")] == uniform
    assert read_rows(tmp_path / "a.parquet")[1].origin == f"{tmp_path / 'a.parquet'}[1]"


@given(st.lists(st.dictionaries(st.text(), st.text()), min_size=1, max_size=5))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]):
    path = write(tmp_path_factory.getbasetemp() / "round_trip.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [row.fields for row in read_rows(path)] == rows


def test_limit_keeps_the_first_and_does_not_read_on(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", lines(*ROWS) + "{broken")
    assert [row.fields for row in read_rows(path, limit=2)] == ROWS[:2]
    assert "limit: must be at least 1, got 0" in said(path, limit=0)


def test_a_folder_gives_the_asked_split(tmp_path: Path):
    write(tmp_path / "train.jsonl", lines(ROWS[0]))
    write(tmp_path / "dev.json", json.dumps(ROWS[1:2]))
    for number in (1, 0):
        write(tmp_path / "data" / f"test-0000{number}-of-00002.jsonl", lines({"text": f"shard {number}"}))
    assert [row.fields for row in read_rows(tmp_path)] == ROWS[:1]
    assert [row.fields for row in read_rows(tmp_path, split="dev")] == ROWS[1:2]
    assert [row.fields["text"] for row in read_rows(tmp_path, split="test")] == ["shard 0", "shard 1"]
    assert said(tmp_path, split="valid").endswith("no split 'valid' in this folder; it holds dev, train")


def test_a_split_in_two_formats_is_ambiguous(tmp_path: Path):
    write(tmp_path / "train.jsonl", lines(ROWS[0]))
    write(tmp_path / "train.json", json.dumps(ROWS))
    assert said(tmp_path).endswith("holds train.json and train.jsonl; name the file")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", lines(ROWS[0]) + '{"text": "b"', "a.jsonl:2: broken JSON: Expecting ',' delimiter at column 13"),
        ("a.jsonl", lines(ROWS[0]) + "\n[1, 2]\n", "a.jsonl:3: holds a list, not an object"),
        ("a.jsonl", '"text"\n', "a.jsonl:1: holds a string, not an object"),
        ("a.jsonl", "7\n", "a.jsonl:1: holds a number, not an object"),
        ("a.jsonl", "null\n", "a.jsonl:1: holds null, not an object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl:2: is not UTF-8: invalid start byte at byte 10"),
        ("a.jsonl", "[" * 200_000, "a.jsonl:1: broken JSON"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}", "a.jsonl:1: broken JSON"),
        ("a.jsonl", "", "a.jsonl: holds no rows"),
        ("a.jsonl", "\n\n", "a.jsonl: holds no rows"),
        ("a.json", "", "a.json: holds no rows"),
        ("a.json", "[]", "a.json: holds no rows"),
        ("a.json", '{"text": "a"}', "a.json: holds an object, not a list of rows"),
        ("a.json", '[{"text": "a"}, 3]', "a.json[1]: holds a number, not an object"),
        ("a.json", '[\n{"text": "a"\n]', "a.json:3: broken JSON"),
        ("a.json", lines(*ROWS), "is it one object a line? then name it .jsonl"),
        ("a.parquet", "PAR1 no", "a.parquet: is not a readable Parquet file"),
        ("a.csv", "a,b", "a.csv: cannot read '.csv' files; use .jsonl, .json, .parquet"),
    ],
)
def test_mistakes_name_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | bytes, expected: str
):
    monkeypatch.chdir(tmp_path)
    write(Path(name), text)
    assert expected in said(name)


def test_a_missing_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(Path("data/dolly/train.jsonl"), lines(ROWS[0]))
    mend = "no such file or folder; did you mean"
    assert said("data/dolly/trian.jsonl") == f"data/dolly/trian.jsonl: {mend} 'train.jsonl'?"
    assert said("data/doly/train.jsonl") == f"data/doly: {mend} 'dolly'?"
    assert "is a file, not a folder" in said("data/dolly/train.jsonl/x.jsonl")


def test_a_misspelt_path_beside_a_folder_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "data" / "dolly.jsonl", lines(ROWS[0]))
    monkeypatch.chdir(tmp_path)
    assert said("data/doly") == "data/doly: no such file or folder; did you mean 'dolly.jsonl'?"
    assert "give a file, a folder or a Hub name" in said("zzzz")


def test_a_hub_name_that_cannot_be_had_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # the suite is offline
    assert re.match(
        "nobody/nothing: no such path, nor a loadable 'dev' on the Hub: ", said("nobody/nothing", split="dev")
    )


def test_rows_and_templates_leave_torch_alone():
    modules = "stillhouse.data, stillhouse.data.templates"
    script = f"import sys, {modules}; print(*({{'torch', 'transformers', 'datasets', 'pyarrow'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
