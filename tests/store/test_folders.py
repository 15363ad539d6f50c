"""Folders: whole, verified, and never in the way of what others keep."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.store import durable


def test_a_folder_comes_into_being_whole(tmp_path: Path):
    path = tmp_path / "run" / "last"
    with store.write_folder(path) as folder:
        assert folder.parent == path.parent
        (folder / "weights").mkdir()
        (folder / "weights" / "a.bin").write_bytes(b"abc")
        (folder / ".gitattributes").write_text("")
        assert not path.exists()
    store.verify_folder(path)
    assert store.find_folder(path) == path
    assert list(path.parent.iterdir()) == [path]
    assert store.read_json(path / "manifest.json", require_hash=False)["files"] == {
        ".gitattributes": {"bytes": 0, "xxh3": "2d06800538d394c2"},
        "weights/a.bin": {"bytes": 3, "xxh3": "78af5f94892f3950"},
    }


def test_files_written_by_the_store_inside_a_folder_need_no_hash_of_their_own(tmp_path: Path):
    with store.write_folder(tmp_path / "x") as folder:
        (folder / "deep").mkdir()
        store.write_json(folder / "deep" / "state.json", {"step": 1})
        store.write_json(folder / "state.json", {"step": 1})
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"deep", "manifest.json", "state.json"}
    assert [path.name for path in (tmp_path / "x" / "deep").iterdir()] == ["state.json"]
    assert store.read_json(tmp_path / "x" / "state.json") == {"step": 1}


def test_files_of_others_are_not_replaced(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    refused = pytest.raises(Mistake, match=r"holds files without a manifest\.json, not ours to replace; give another")
    with refused, store.write_folder(tmp_path / "thesis"):
        pytest.fail("the caller's work would be lost at its end")
    (tmp_path / "thesis").rename(tmp_path / "thesis.previous")
    with refused, store.write_folder(tmp_path / "thesis"):
        pytest.fail("nor is what stands under the name of an earlier version")
    (tmp_path / "thesis").mkdir()
    store.remove_folder(tmp_path / "thesis")
    assert (tmp_path / "thesis.previous" / "chapter1.tex").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Mistake, match="cannot be written: Not a directory"), store.write_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.previous", "file"}


def test_one_version_before_is_kept_if_asked_and_never_a_damaged_one(tmp_path: Path):
    def write(text: str, keep_previous: bool = True) -> None:
        with store.write_folder(tmp_path / "x", keep_previous=keep_previous) as folder:
            (folder / "a").write_text(text)

    def versions() -> dict[str, str]:
        return {path.name: (path / "a").read_text() for path in tmp_path.iterdir()}

    write("1")
    assert versions() == {"x": "1"}
    write("2")
    write("3")
    assert versions() == {"x": "3", "x.previous": "2"}
    (tmp_path / "x" / "a").write_text("bit rot")
    store.drop_previous(tmp_path / "x")  # which is the only good one
    assert store.find_folder(tmp_path / "x") == tmp_path / "x.previous"
    write("4")
    assert versions() == {"x": "4", "x.previous": "2"}
    (tmp_path / "x.previous" / "a").write_text("bit rot")
    write("5")
    assert versions() == {"x": "5", "x.previous": "4"}
    store.drop_previous(tmp_path / "x")
    assert versions() == {"x": "5"}
    store.drop_previous(tmp_path / "x")
    write("6")
    write("7", keep_previous=False)
    assert versions() == {"x": "7"}


@pytest.mark.parametrize("name", [".DS_Store", "sub/.nfs0001"])
def test_hidden_files_that_came_later_do_no_harm(name: str, tmp_path: Path):
    with store.write_folder(tmp_path / "x") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
    (tmp_path / "x" / name).write_text("")
    store.verify_folder(tmp_path / "x")


def test_what_is_no_folder_of_ours_does_not_verify(tmp_path: Path):
    for look in (store.verify_folder, store.find_folder, store.remove_folder):
        with pytest.raises(store.Absent, match="x: does not exist"):
            look(tmp_path / "x")
    with pytest.raises(store.Corrupt, match=r"expected manifest\.json, found none: unfinished, or not written by"):
        store.verify_folder(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "of a web page"}')
    with pytest.raises(store.Corrupt, match=r"expected manifest\.json"):
        store.verify_folder(tmp_path)
    (tmp_path / "manifest.json").write_text('{"files": {"a": 1}, "xxh3": 2}')
    with pytest.raises(store.Corrupt, match=r"manifest\.json"):
        store.verify_folder(tmp_path)


def test_a_link_to_a_folder_is_refused_since_nothing_vouches_for_what_is_there(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(Mistake, match="Is a directory"), store.write_folder(tmp_path / "x") as folder:
        (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}


def test_removal_takes_any_folder_with_its_earlier_version_and_follows_no_link(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("a")
    with store.write_folder(tmp_path / "earlier"):
        pass
    (tmp_path / "earlier").rename(tmp_path / "run.previous")
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / "link").symlink_to(tmp_path / "kept")
    store.remove_folder(tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"kept"}
    assert (tmp_path / "kept" / "a").read_text() == "a"


def test_only_what_no_living_process_owns_is_cleaned(tmp_path: Path):
    mine = durable.new_temporary(tmp_path / "crashed before my time in this container")
    parents = str(mine).replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    init = str(mine).replace(f"-{os.getpid()}-", "-1-")
    dead = str(mine).replace(f"-{os.getpid()}-", "-999999999-")
    far = str(mine).replace(mine.name.split("-")[1], "0" * 8)
    far_old = far + "-old"
    for path in (mine, parents, init, dead, far, far_old):
        Path(path).mkdir()
        (Path(path) / "a").write_text("a")
    day_before = time.time() - 25 * 3600
    os.utime(far_old, (day_before, day_before))
    with store.write_folder(tmp_path / "x"), store.write_file(tmp_path / "y") as other:
        other.write_text("two at once")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(Path(path).name for path in (parents, init, far)), "x", "y", "y.xxh3",
    }  # fmt: skip
