"""A save is all or nothing: a fault at every call that changes the disk, for every kind of artifact."""

from __future__ import annotations

import ast
import errno
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stillhouse import store
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.store import durable, syscalls
from tests.store.faults import CALLS, Death, Faults, faults_below

OLD, NEW = "the version before " * 40, "another version, a little longer " * 40
OLD_FILES = {"a.bin": OLD, "deep/er/b.bin": "b", "only_in_old": "c"}
NEW_FILES = {"a.bin": NEW, "deep/er/b.bin": "bb", "only_in_new": ""}
NOTHING = "nothing"
DEAD = 999999999  # a process that cannot be

Reader = Callable[[Path], Any]
Writer = Callable[[Path, Faults], None]


@dataclass(frozen=True)
class Scenario:
    """Something on the disk, a write, what may be read afterwards, and what lies there after an undisturbed one."""

    name: str
    prepare: Callable[[Path], None]
    write: Writer
    read: Reader
    old: Any
    new: Any
    left: set[str]

    def __str__(self) -> str:
        return self.name


# Files


def write_new_file(root: Path, faults: Faults) -> None:
    with store.write_file(root / "x.txt") as temporary:
        faults.step()
        temporary.write_text(NEW[:9])
        faults.step()
        temporary.write_text(NEW)
        faults.step()


def read_file(root: Path, **options: Any) -> Any:
    try:
        return store.read_text(root / "x.txt", **options)
    except store.Absent:
        return NOTHING


def two_versions(root: Path) -> None:
    """The file is the old one, and its sidecar knows a newer one: what a crash between the two renames leaves."""
    store.write_text(root / "x.txt", OLD)
    before = (root / "x.txt").read_bytes()
    store.write_text(root / "x.txt", "never came to be")
    (root / "x.txt").write_bytes(before)


def file_of_others(root: Path) -> None:
    (root / "x.txt").write_text(OLD)


# Folders


def fill(folder: Path, files: dict[str, str], step: Callable[[], None] = lambda: None) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        step()
        (folder / name).write_text(text)
    step()


def old_folder(root: Path) -> None:
    with store.write_folder(root / "last") as folder:
        fill(folder, OLD_FILES)


def write_new_folder(root: Path, faults: Faults) -> None:
    with store.write_folder(root / "last") as folder:
        fill(folder, NEW_FILES, faults.step)


def write_keeping_folder(root: Path, faults: Faults) -> None:
    with store.write_folder(root / "last", keep_previous=True) as folder:
        fill(folder, NEW_FILES, faults.step)


def read_folder(root: Path) -> Any:
    try:
        folder = store.find_folder(root / "last")
    except store.Absent:
        return NOTHING
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def between_renames(root: Path) -> None:
    old_folder(root)
    (root / "last").rename(root / "last.previous")


def before_cleaning(root: Path) -> None:
    with store.write_folder(root / "last") as folder:
        fill(folder, {"a.bin": "older still"})
    (root / "last").rename(root / "last.previous")
    old_folder_bare(root)


def old_folder_bare(root: Path) -> None:
    with store.write_folder(root / "elsewhere") as folder:
        fill(folder, OLD_FILES)
    (root / "elsewhere").rename(root / "last")


def damaged_beside_good(root: Path) -> None:
    between_renames(root)
    old_folder_bare(root)
    (root / "last" / "a.bin").write_text("bit rot")


def leftovers(root: Path) -> None:
    old_folder(root)
    for name in ("last", "x.txt"):
        dead = str(durable.new_temporary(root / name)).replace(f"-{os.getpid()}-", f"-{DEAD}-")
        Path(dead).mkdir()
        fill(Path(dead), OLD_FILES)


def remove(root: Path, faults: Faults) -> None:
    store.remove_folder(root / "last")


def drop_previous(root: Path, faults: Faults) -> None:
    store.drop_previous(root / "last")


# Logs


def old_log(root: Path) -> None:
    (root / "log").write_text("one\ntwo\n")


def torn_log(root: Path) -> None:
    (root / "log").write_text("one\ntwo\nthr")


def append(root: Path, faults: Faults) -> None:
    store.append_line(root / "log", "three, and more")


def rewrite(root: Path, faults: Faults) -> None:
    store.rewrite_lines(root / "log", ["one"])


def read_log(root: Path) -> Any:
    try:
        return store.read_lines(root / "log")
    except store.Absent:
        return NOTHING


def nothing(root: Path) -> None: ...


LOG = ["one", "two"]
PAIR = {"x.txt", "x.txt.xxh3"}
BOTH = {"last", "last.previous"}
SCENARIOS = [
    Scenario("new file", nothing, write_new_file, read_file, NOTHING, NEW, PAIR),
    Scenario("file", lambda r: store.write_text(r / "x.txt", OLD), write_new_file, read_file, OLD, NEW, PAIR),
    Scenario("file after a crash", two_versions, write_new_file, read_file, OLD, NEW, PAIR),
    Scenario("text", lambda r: store.write_text(r / "x.txt", OLD), lambda r, _: store.write_text(r / "x.txt", NEW),
             read_file, OLD, NEW, PAIR),
    Scenario("file of others", file_of_others, write_new_file,
             lambda r: read_file(r, require_hash=False), OLD, NEW, PAIR),
    Scenario("new folder", nothing, write_new_folder, read_folder, NOTHING, NEW_FILES, {"last"}),
    Scenario("onto an empty folder", lambda r: (r / "last").mkdir(), write_new_folder,
             lambda r: NOTHING if not any((r / "last").iterdir()) else read_folder(r), NOTHING, NEW_FILES, {"last"}),
    Scenario("folder", old_folder, write_new_folder, read_folder, OLD_FILES, NEW_FILES, {"last"}),
    Scenario("folder, crashed between its renames", between_renames, write_new_folder, read_folder, OLD_FILES,
             NEW_FILES, {"last"}),
    Scenario("folder, crashed before cleaning", before_cleaning, write_new_folder, read_folder, OLD_FILES, NEW_FILES,
             {"last"}),
    Scenario("folder, damaged beside a good one", damaged_beside_good, write_new_folder, read_folder, OLD_FILES,
             NEW_FILES, {"last"}),
    Scenario("folder, keeping a version", old_folder, write_keeping_folder, read_folder, OLD_FILES, NEW_FILES, BOTH),
    Scenario("folder, keeping a version of three", before_cleaning, write_keeping_folder, read_folder, OLD_FILES,
             NEW_FILES, BOTH),
    Scenario("folder, keeping the good one", damaged_beside_good, write_keeping_folder, read_folder, OLD_FILES,
             NEW_FILES, BOTH),
    Scenario("dropping a version", before_cleaning, drop_previous, read_folder, OLD_FILES, OLD_FILES, {"last"}),
    Scenario("folder beside leftovers", leftovers, write_new_folder, read_folder, OLD_FILES, NEW_FILES, {"last"}),
    Scenario("removal", old_folder, remove, read_folder, OLD_FILES, NOTHING, set()),
    Scenario("new log", nothing, append, read_log, (NOTHING, []), ["three, and more"], {"log"}),
    Scenario("log", old_log, append, read_log, LOG, [*LOG, "three, and more"], {"log"}),
    Scenario("torn log", torn_log, append, read_log, LOG, [*LOG, "three, and more"], {"log"}),
    Scenario("rewritten log", old_log, rewrite, read_log, LOG, ["one"], {"log"}),
]  # fmt: skip


def each_fault(tmp_path: Path, scenario: Scenario, mode: str | int):
    """A prepared root and an armed disk for every k, until an undisturbed write."""
    for k in itertools.count():
        root = tmp_path / str(k)
        root.mkdir()
        with faults_below(root) as faults:
            scenario.prepare(root)
            faults.arm(k, mode)
            yield root, faults
            if faults.fired is None:
                assert faults.calls == k >= 2
                return


def is_old_or_new(scenario: Scenario, found: Any) -> bool:
    olds = scenario.old if isinstance(scenario.old, tuple) else (scenario.old,)
    return found in (*olds, scenario.new)


@pytest.mark.parametrize(("mode", "power"), [("death", "kept"), ("torn", "lost"), ("interrupt", "kept")])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_death_at_any_moment(scenario: Scenario, mode: str, power: str, tmp_path: Path):
    for root, faults in each_fault(tmp_path, scenario, mode):
        with suppress(Death, KeyboardInterrupt):
            scenario.write(root, faults)
        faults.disarm()
        if power == "lost":
            faults.lose_power()
        found = scenario.read(root)
        assert is_old_or_new(scenario, found), faults.trace[-1]
        assert faults.fired or found == scenario.new
        if scenario.new == NOTHING:
            continue
        scenario.write(root, faults)  # what the next run does; a log may get the line a second time
        again = scenario.read(root)
        assert again == scenario.new or (isinstance(again, list) and again[-1] == scenario.new[-1])
        assert {path.name for path in root.iterdir()} == scenario.left


@pytest.mark.parametrize("mode", [errno.EIO, errno.EACCES, "full"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_an_error_at_any_call(scenario: Scenario, mode: int | str, tmp_path: Path):
    text = os.strerror(errno.ENOSPC if mode == "full" else int(mode))
    for root, faults in each_fault(tmp_path, scenario, mode):
        stood = (root / "last").exists() and scenario.new != NOTHING
        mistake, error = None, None
        try:
            scenario.write(root, faults)
        except Mistake as caught:
            mistake = caught
        except PermissionError as caught:
            error = caught
        faults.disarm()
        found = scenario.read(root)
        assert is_old_or_new(scenario, found), faults.trace
        assert (root / "last").exists() or not stood  # under its own name, for those who do not ask find_folder
        if mistake:
            assert text in str(mistake)
            assert root.name in Path(mistake.where).parts
            assert len(str(mistake)) <= LONGEST_LINE
        elif error:  # in the caller's own code, and not the disk's doing
            assert (faults.fired, mode) == ("step", errno.EACCES)
        else:  # in cleaning, or beside what another process had done already
            assert faults.fired in {None, "unlink", "remove_empty", "rename", "make_folder"}
            assert found == scenario.new
        if faults.fired not in {None, "unlink", "remove_empty", "rename"}:
            assert not [path for path in root.rglob(".stillhouse-*") if str(DEAD) not in path.name]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_a_disk_that_takes_half_of_a_write(scenario: Scenario, tmp_path: Path):
    for root, faults in each_fault(tmp_path, scenario, "short"):
        scenario.write(root, faults)
        faults.disarm()
        assert scenario.read(root) == scenario.new
        assert {path.name for path in root.iterdir()} == scenario.left


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_names_reach_the_disk_in_order(scenario: Scenario, tmp_path: Path):
    """A disk may carry out two renames in either order unless the folder is fsynced in between."""
    scenario.prepare(tmp_path)
    with faults_below(tmp_path) as faults:
        scenario.write(tmp_path, faults)
    wanted = False
    for name, arguments in faults.trace:
        # No order is asked of the renaming of an earlier version to be removed: both versions are whole then.
        if name == "rename" and not arguments[0].name.endswith(".previous"):
            assert not wanted, arguments
        wanted = name != "fsync folder" and (wanted or name in ("rename", "make_folder"))
        if name == "rename" and arguments[0].name.endswith(".previous") and arguments[1].name != "last":
            wanted = False
    assert not wanted


def test_the_names_inside_a_folder_reach_the_disk_before_its_own(tmp_path: Path):
    with faults_below(tmp_path) as faults:
        write_new_folder(tmp_path / "new" / "run", faults)
    names = [name for name, _ in faults.trace]
    sealed = names[names.index("write") : names.index("rename")]
    assert sealed == ["write", "fsync", *["fsync folder"] * 3]  # the manifest last; then deep/er, deep and the top
    assert names[:4] == ["make_folder", "fsync folder"] * 2  # new and run, each known to the folder above it
    assert names[-2:] == ["rename", "fsync folder"]


def test_the_name_of_a_new_log_reaches_the_disk(tmp_path: Path):
    for names in (["open_log", "write", "fsync", "fsync folder"], ["open_log", "write", "fsync"]):
        with faults_below(tmp_path) as faults:
            append(tmp_path, faults)
        assert [name for name, _ in faults.trace] == names


def test_a_line_that_fits_only_by_half_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old_log(tmp_path)
    real = syscalls.write
    disk = iter([lambda descriptor, data: real(descriptor, data[:5]), full_disk])
    monkeypatch.setattr(syscalls, "write", lambda *arguments: next(disk)(*arguments))
    with pytest.raises(Mistake, match="No space left on device"):
        store.append_line(tmp_path / "log", "three")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def full_disk(descriptor: int, data: memoryview) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_every_call_that_changes_a_disk_has_its_fault():
    own = {name for name, value in vars(syscalls).items() if getattr(value, "__module__", "") == syscalls.__name__}
    assert own == set(CALLS)


CHANGES = {
    "write", "pwrite", "writev", "fsync", "fdatasync", "ftruncate", "truncate", "rename", "renames", "replace",
    "unlink", "remove", "rmdir", "rmtree", "removedirs", "mkdir", "makedirs", "mkdtemp", "mkstemp", "touch",
    "symlink_to", "link", "write_bytes", "write_text", "copy", "copyfile", "move",
}  # fmt: skip


def test_the_store_changes_the_disk_through_syscalls_alone():
    for module in Path(syscalls.__file__).parent.glob("*.py"):
        if module.name != "syscalls.py":
            tree = ast.parse(module.read_text())
            calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
            methods = [ast.unparse(call) for call in calls if isinstance(call, ast.Attribute) and call.attr in CHANGES]
            assert [name for name in methods if not name.startswith(("syscalls.", "durable."))] == [], module.name
            assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "open"], module.name
