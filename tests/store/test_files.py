"""Single files: what is written is what is read, and what was not written by the store is not read by accident."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.store import files, syscalls

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "fsync", lambda descriptor: None)


@given(st.lists(values, max_size=4))
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[object]):
    path = tmp_path_factory.getbasetemp() / "json"
    store.write_json(path / "x.json", rows)
    store.write_jsonl(path / "x.jsonl", rows)
    assert store.read_json(path / "x.json") == rows
    assert store.read_jsonl(path / "x.jsonl") == rows
    assert (path / "x.jsonl").read_bytes().count(b"\n") == len(rows)


@pytest.mark.parametrize("text", ["", "one\r\ntwo\rthree\n", "zero\0 width\u200d line\u2028end \U0001f469"])
def test_text_comes_back(text: str, tmp_path: Path):
    store.write_text(tmp_path / "x", text)
    assert store.read_text(tmp_path / "x") == text
    store.write_jsonl(tmp_path / "x", [text, "\ud800"])  # half a surrogate pair, as a data set's escapes may have it
    assert store.read_jsonl(tmp_path / "x") == [text, "\ud800"]


def test_what_text_and_json_cannot_hold_is_refused(tmp_path: Path):
    with pytest.raises(Mistake, match="character 2 is half of a surrogate pair"):
        store.write_text(tmp_path / "x", "ab\udfff")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "x", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_the_sidecar_has_the_hash_of_the_file_and_of_the_one_before(tmp_path: Path):
    for content in (b"one", b"second", b"third one"):
        store.write_bytes(tmp_path / "x", content)
    lines = (tmp_path / "x.xxh3").read_text().splitlines()
    assert lines == [f"{xxhash.xxh3_64_hexdigest(b'third one')} 9", f"{xxhash.xxh3_64_hexdigest(b'second')} 6"]


def test_a_corrupt_file_is_not_vouched_for_when_it_is_replaced(tmp_path: Path):
    store.write_bytes(tmp_path / "x", b"one")
    (tmp_path / "x").write_bytes(b"two")
    store.write_bytes(tmp_path / "x", b"three")
    (tmp_path / "x").write_bytes(b"two")
    with pytest.raises(store.Corrupt):
        store.read_bytes(tmp_path / "x")


def test_a_reader_meets_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole write happens between the reader's look at the file and its look at the hash."""
    store.write_bytes(tmp_path / "x", b"one")
    real = files.read_sidecar

    def after_a_write(path: Path):
        monkeypatch.setattr(files, "read_sidecar", real)
        store.write_bytes(tmp_path / "x", b"two")
        return real(path)

    monkeypatch.setattr(files, "read_sidecar", after_a_write)
    assert store.read_bytes(tmp_path / "x") == b"one"
    assert store.read_bytes(tmp_path / "x") == b"two"


def test_what_has_no_hash_is_read_only_where_that_is_said(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "manifest.json").write_text('{"name": "of a web page"}')
    with pytest.raises(Mistake, match=r"rows\.jsonl: has no hash to check it against; make it again, or keep"):
        store.read_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(Mistake, match="has no hash"):
        store.verify_file(tmp_path / "rows.jsonl")
    assert store.read_jsonl(tmp_path / "rows.jsonl", require_hash=False) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": 1}\n{"a": }\n', "x.jsonl:2: is not JSON: Expecting value"),
        (b"\n\n[\n", "x.jsonl:3: is not JSON"),
        (b"[" * 100_000, "x.jsonl:1: is nested too deeply"),
        (b'"\xff"', "x.jsonl: is not UTF-8 at byte 1; save it as UTF-8"),
    ],
)
def test_broken_lines_are_named(content: bytes, line: str, tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(Mistake) as caught:
        store.read_jsonl(tmp_path / "x.jsonl", require_hash=False)
    assert line in str(caught.value)


def test_broken_json_is_named_with_its_line(tmp_path: Path):
    store.write_text(tmp_path / "x.json", '{\n"a": 1,\n}')
    with pytest.raises(Mistake, match=r"x\.json:\d: is not JSON"):
        store.read_json(tmp_path / "x.json")


def test_what_is_not_there_is_absent(tmp_path: Path):
    for read in (store.read_bytes, store.read_text, store.read_json, store.read_jsonl, store.verify_file):
        with pytest.raises(store.Absent, match="x: does not exist"):
            read(tmp_path / "x")
    with pytest.raises(Mistake, match="cannot be read: Is a directory"):
        store.read_bytes(tmp_path)


def test_what_is_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Mistake, match="cannot be written: Not a directory"):
        store.write_text(tmp_path / "file" / "x", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Mistake, match="cannot be written: Is a directory"):
        store.write_text(tmp_path / "folder", "")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_the_temporary_keeps_the_suffix_and_long_names_fit(tmp_path: Path):
    path = tmp_path / ("x" * 245 + ".png")
    with store.write_file(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"drawn")
    assert store.read_bytes(path) == b"drawn"


def test_a_mistake_of_the_caller_stays_what_it_is_and_leaves_nothing(tmp_path: Path):
    store.write_text(tmp_path / "x", "old")
    own = pytest.raises(FileNotFoundError, match="elsewhere")
    with own, store.write_file(tmp_path / "x") as temporary:
        assert temporary.write_text("half")
        Path("/elsewhere").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.xxh3"}
    assert store.read_text(tmp_path / "x") == "old"


class RustError(Exception): ...


def test_a_full_disk_is_named_also_where_a_rust_library_met_it(tmp_path: Path):
    full = pytest.raises(Mistake, match="No space left on device; free some space on the disk")
    with full, store.write_file(tmp_path / "x"):
        raise RustError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RustError), store.write_file(tmp_path / "x"):
        raise RustError("Error while serializing: I/O error: No such file or directory (os error 2)")


TORCH_ERRORS = (
    "[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598",
    "PytorchStreamWriter failed writing file data/0: file write failed",
    "basic_ios::clear: iostream error",
)


@pytest.mark.parametrize("said", TORCH_ERRORS)
def test_torch_that_does_not_say_what_the_disk_did(tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch):
    """The disk is asked again; the file of a folder is named, and the version before stays."""

    def save() -> None:
        with store.write_folder(tmp_path / "last") as folder:
            (folder / "weights").write_text("whole")
            (folder / "optimizer.pt").write_text("half")
            raise RuntimeError(said)

    with store.write_folder(tmp_path / "last") as folder:
        (folder / "weights").write_text("old")
    with monkeypatch.context() as full:
        full.setattr(syscalls, "write", lambda *_: _refuse(errno.ENOSPC))
        with pytest.raises(Mistake) as raised:
            save()
    place = f"{tmp_path}/last/optimizer.pt: cannot be written: "
    assert str(raised.value) == f"{place}No space left on device; free some space on the disk"
    with pytest.raises(Mistake) as raised:
        save()
    assert str(raised.value) == f"{place}Input/output error; check the disk"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    store.verify_folder(tmp_path / "last")
    assert (tmp_path / "last" / "weights").read_text() == "old"


def _refuse(number: int) -> int:
    raise OSError(number, os.strerror(number))


def test_a_really_full_disk(tmp_path: Path):
    """A limit on the size of files stands for the disk's: the same calls fail, in the kernel."""
    program = (
        "import resource, signal, sys\nfrom stillhouse import store\nfrom stillhouse.mistakes import Mistake\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: store.write_bytes(sys.argv[1], bytes(5000))\nexcept Mistake as mistake: print(mistake)\n"
    )
    store.write_bytes(tmp_path / "x", b"old")
    said = subprocess.run([sys.executable, "-c", program, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert said.stdout == f"{tmp_path}/x: cannot be written: File too large\n"
    assert store.read_bytes(tmp_path / "x") == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x.xxh3"}
