"""Logs grow by whole lines, whatever happens to the process that writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse import store
from stillhouse.mistakes import Mistake


def test_lines_come_back(tmp_path: Path):
    lines = ["{}", "", "line\u2028separator \U0001f469", "a carriage\rreturn"]
    for line in lines:
        store.append_line(tmp_path / "run" / "metrics.jsonl", line)
    assert store.read_lines(tmp_path / "run" / "metrics.jsonl") == lines
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.jsonl"}


@pytest.mark.parametrize("torn", [b"x", b'{"loss": 1.\xe2\x80', b"y" * 4096, b"z" * 10_000])
@pytest.mark.parametrize("before", [b"", b"one\n", b"one\n" * 1024, b"w" * 5000 + b"\n"])
def test_a_torn_line_is_left_out_and_replaced(
    before: bytes, torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "log"
    path.write_bytes(before + torn)
    whole = before.decode().split("\n")[:-1]
    assert store.read_lines(path) == whole
    assert f"{len(torn)} bytes, is torn" in caplog.text
    store.append_line(path, "next")
    assert f"{len(torn)} bytes, was torn" in caplog.text
    assert path.read_bytes() == before + b"next\n"
    assert store.read_lines(path) == [*whole, "next"]


def test_no_text_stops_a_log(tmp_path: Path):
    store.append_line(tmp_path / "log", "half a pair: \ud800")
    assert store.read_lines(tmp_path / "log") == [r"half a pair: \ud800"]


def test_a_log_is_rewritten_whole(tmp_path: Path):
    for number in range(5):
        store.append_line(tmp_path / "log", str(number))
    store.rewrite_lines(tmp_path / "log", ["0", "1"])
    store.append_line(tmp_path / "log", "2")
    assert store.read_lines(tmp_path / "log") == ["0", "1", "2"]
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


def test_what_has_a_hash_is_no_log(tmp_path: Path):
    store.write_jsonl(tmp_path / "rows.jsonl", [1])
    with pytest.raises(ValueError, match="has a hash, so it is not a log"):
        store.append_line(tmp_path / "rows.jsonl", "2")
    assert store.read_jsonl(tmp_path / "rows.jsonl") == [1]


def test_what_is_wrong_with_a_log_is_named(tmp_path: Path):
    with pytest.raises(store.Absent, match="log: does not exist"):
        store.read_lines(tmp_path / "log")
    (tmp_path / "log").write_bytes(b"a\n\xff\n")
    with pytest.raises(Mistake, match="log:2: is not UTF-8; remove the line"):
        store.read_lines(tmp_path / "log")
    with pytest.raises(Mistake, match="cannot be written: Is a directory"):
        store.append_line(tmp_path, "x")
