"""No silent corruption: whatever is changed in what was written is found when it is read, and named."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stillhouse import store
from stillhouse.mistakes import LONGEST_LINE
from stillhouse.store import syscalls

PAGE = 4096
names = st.sampled_from(["model-1.safetensors", "model-2.safetensors", "config.json", "method/state.bin", "a/b/c", "é"])
contents = st.binary(max_size=100) | st.integers(0, 9)  # bytes, or the seed of three pages of them
artifacts = st.dictionaries(names, contents, min_size=1, max_size=5)


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(syscalls, "fsync", lambda descriptor: None)
        yield


Files = dict[str, bytes | int]


def as_bytes(content: bytes | int) -> bytes:
    return content if isinstance(content, bytes) else random.Random(content).randbytes(3 * PAGE)


def write(path: Path, files: Mapping[str, bytes | int]) -> None:
    with store.write_folder(path) as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(as_bytes(data))


def damaged(data: bytes, kind: str, where: float, bit: int) -> bytes:
    at = min(int(where * len(data)), len(data) - 1)
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
    if kind == "zero page":
        begin = at - at % PAGE
        return data[:begin] + bytes(len(data[begin : begin + PAGE])) + data[begin + PAGE :]
    if kind == "cut":
        return data[:at]
    if kind == "grown":
        return data + b"\0"
    raise AssertionError(kind)


def picked(things: Iterable[str], pick: int) -> str:
    among = sorted(things)
    return among[pick % len(among)]


KINDS = st.sampled_from(["flip", "zero page", "cut", "grown"])
WHERE = st.floats(0, 1)
BIT = st.integers(0, 7)
PICK = st.integers(0, 59)  # which of up to 6 things, alike likely


@given(artifacts, PICK, KINDS, WHERE, BIT)
def test_any_damage_to_any_file_of_a_folder(files: Files, pick: int, kind: str, where: float, bit: int):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "checkpoint"
        write(folder, files)
        store.verify_folder(folder)
        victim = folder / picked(["manifest.json", *sorted(files)], pick)
        before = victim.read_bytes()
        assume(before or kind == "grown")
        after = damaged(before, kind, where, bit)
        assume(after != before)
        victim.write_bytes(after)
        with pytest.raises(store.Corrupt, match=re.escape(victim.name)) as caught:
            store.verify_folder(folder)
        assert len(str(caught.value)) <= LONGEST_LINE
        with pytest.raises(store.Corrupt):
            store.find_folder(folder)


@given(artifacts, artifacts, st.sampled_from(["missing", "from another", "swapped", "extra"]), PICK)
def test_any_missing_swapped_or_extra_file_of_a_folder(files: Files, others: Files, kind: str, pick: int):
    with tempfile.TemporaryDirectory() as root:
        folder, other = Path(root) / "checkpoint", Path(root) / "other"
        write(folder, files)
        write(other, others)
        name = picked(files, pick)
        if kind == "missing":
            (folder / name).unlink()
        elif kind == "from another":
            name = picked(["manifest.json", *sorted(files.keys() & others.keys())], pick)
            assume((folder / name).read_bytes() != (other / name).read_bytes())
            shutil.copyfile(other / name, folder / name)
        elif kind == "swapped":
            second = picked(files, pick + 1)
            assume(files[name] != files[second])
            (folder / name).write_bytes(as_bytes(files[second]))
            (folder / second).write_bytes(as_bytes(files[name]))
        else:
            (folder / "model-3.safetensors").write_bytes(as_bytes(files[name]))
        with pytest.raises(store.Corrupt):
            store.verify_folder(folder)


@given(st.binary(min_size=1, max_size=300), KINDS, WHERE, BIT)
def test_any_damage_to_a_file(content: bytes, kind: str, where: float, bit: int):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "map.safetensors"
        store.write_bytes(path, b"an earlier version")
        store.write_bytes(path, content)
        after = damaged(content, kind, where, bit)
        assume(after not in (content, b"an earlier version"))
        path.write_bytes(after)
        for read in (store.read_bytes, store.verify_file, lambda path: store.read_bytes(path, require_hash=False)):
            with pytest.raises(store.Corrupt, match=r"expected .* found .*") as caught:
                read(path)
        assert path.name in str(caught.value)


@given(KINDS, WHERE, BIT)
def test_damage_to_a_sidecar_never_lets_other_bytes_pass(kind: str, where: float, bit: int):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "map.bin"
        store.write_bytes(path, b"before")
        store.write_bytes(path, b"now")
        sidecar = Path(root) / "map.bin.xxh3"
        sidecar.write_bytes(damaged(sidecar.read_bytes(), kind, where, bit))
        with suppress(store.Corrupt):
            assert store.read_bytes(path) == b"now"
        path.write_bytes(b"how")
        with pytest.raises(store.Corrupt):
            store.read_bytes(path)


def test_every_single_bit_of_a_manifest(tmp_path: Path):
    folder = tmp_path / "x"
    write(folder, {"config.json": b"{}", "é": b""})
    manifest = folder / "manifest.json"
    good = manifest.read_bytes()
    for position in range(8 * len(good)):
        broken = bytearray(good)
        broken[position // 8] ^= 1 << position % 8
        manifest.write_bytes(broken)
        with pytest.raises(store.Corrupt):
            store.verify_folder(folder)


def test_a_file_in_a_folder_is_checked_against_the_manifest(tmp_path: Path):
    write(tmp_path / "last", {"state.json": b'{"step": 3}'})
    assert store.read_json(tmp_path / "last" / "state.json") == {"step": 3}
    (tmp_path / "last" / "state.json").write_bytes(b'{"step": 4}')
    with pytest.raises(store.Corrupt, match=r"state\.json.*expected 11 bytes xxh3 \w{16}, found 11 bytes xxh3 \w{16};"):
        store.read_json(tmp_path / "last" / "state.json")
    with pytest.raises(store.Corrupt):
        store.verify_file(tmp_path / "last" / "state.json")


def test_a_damaged_version_is_passed_over_for_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write(tmp_path / "last", {"a": b"old"})
    (tmp_path / "last").rename(tmp_path / "last.previous")
    write(tmp_path / "elsewhere", {"a": b"new"})
    (tmp_path / "elsewhere").rename(tmp_path / "last")
    assert store.find_folder(tmp_path / "last") == tmp_path / "last"
    assert caplog.text == ""
    (tmp_path / "last" / "a").write_bytes(b"nev")
    assert store.find_folder(tmp_path / "last") == tmp_path / "last.previous"
    assert f"using {tmp_path}/last.previous, the version before: {tmp_path}/last/a is corrupt: expected" in caplog.text
    (tmp_path / "last.previous" / "a").write_bytes(b"odd")
    with pytest.raises(store.Corrupt, match=f"{tmp_path.name}/last/a"):
        store.find_folder(tmp_path / "last")


def test_the_line_shows_both_hashes_and_the_name_however_long_the_path(tmp_path: Path):
    folder = tmp_path / ("d" * 200) / ("e" * 200)
    write(folder, {"model-00001.safetensors": b"abc"})
    (folder / "model-00001.safetensors").write_bytes(b"abd")
    with pytest.raises(store.Corrupt) as caught:
        store.verify_folder(folder)
    line = str(caught.value)
    assert len(line) <= LONGEST_LINE
    assert re.search(
        r"/model-00001\.safetensors: corrupt: expected 3 bytes xxh3 \w{16}, found 3 bytes xxh3 \w{16};", line
    )
    assert line.endswith("delete it and make it again")
