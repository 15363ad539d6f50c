"""Sandboxes as their owner sees them: found by trying, killed with their owner, and only plain data out of them."""

from __future__ import annotations

import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.mistakes import Mistake
from stillhouse.sandbox import Limits, choose, describe, run, why_not
from stillhouse.sandbox.inside import plain
from stillhouse.sandbox.system_calls import FORBIDDEN, seccomp_filter

SOURCES = [str(Path(__file__).parents[2] / "src")]
needs_namespaces = pytest.mark.skipif(bool(why_not("namespaces")), reason="no namespaces on this machine")


def fresh(program: str, *before: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `program` in an interpreter of its own that finds the package here."""
    text = f"import sys; sys.path[:0] = {SOURCES!r}\n{program}"
    return subprocess.run(
        [*before, sys.executable, "-c", text], capture_output=True, text=True, check=False, env=environment
    )


def test_a_sandbox_that_is_none_is_found_out():
    assert why_not("none") == "a program in it can read a file outside"
    assert choose("none") == "none"
    assert describe("none") == {"kind": "none", "system_calls_filtered": False}


def test_a_machine_that_allows_namespaces_has_a_sandbox():
    """Else a sandbox that is broken would only skip the tests of it."""
    able = shutil.which("unshare") and subprocess.run(["unshare", "-Urmpnui", "--fork", "true"], check=False).returncode
    if able != 0:
        pytest.skip("unshare(1) makes no namespaces on this machine, or is not installed")
    assert why_not("namespaces") is None


@needs_namespaces
def test_what_is_stricter_comes_first():
    assert choose() == "namespaces"
    assert choose("namespaces") == "namespaces"


@pytest.mark.skipif(
    shutil.which("unshare") is None, reason="unshare(1), which forbids namespaces here, is not installed"
)
@needs_namespaces
def test_where_the_kernel_forbids_namespaces_nothing_runs():
    program = """
import sys
from stillhouse.sandbox import choose, why_not
from stillhouse.mistakes import Mistake
print(why_not("namespaces"))
print(why_not("bubblewrap"))
try:
    choose()
except Mistake as mistake:
    print(mistake)
"""
    forbid = ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]
    done = fresh(program, *forbid, environment={"PATH": "/nowhere:/usr/bin:/bin"})
    namespaces, bubblewrap, mistake = done.stdout.splitlines()
    assert "clone into namespaces" in namespaces
    assert bubblewrap != "None"
    assert mistake.startswith("--sandbox: no sandbox works here (namespaces: clone into namespaces")
    assert mistake.endswith("or accept the danger with --sandbox=none")
    assert len(mistake) <= 200


def test_bubblewrap_that_is_not_there_is_not_chosen():
    done = fresh(
        "from stillhouse.sandbox import why_not; print(why_not('bubblewrap'))", environment={"PATH": "/nowhere"}
    )
    assert done.stdout == "bubblewrap (bwrap) is not installed\n", done.stderr


@needs_namespaces
def test_programs_die_with_who_ordered_them():
    program = """
import os, threading, time
from stillhouse.sandbox import Limits, run
text = "import time; time.sleep(300)"
for _ in range(2): threading.Thread(target=run, args=("namespaces", text, Limits(wall_s=300)), daemon=True).start()
time.sleep(1.5)
print(os.getpid(), flush=True)
time.sleep(300)
"""
    text = f"import sys; sys.path[:0] = {SOURCES!r}\n{program}"
    owner = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        owner.stdout.readline()
        below = family(owner.pid)
        assert len(below) == 5  # a launcher, two keepers and two programs: else the test shows nothing
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, below))


@needs_namespaces
def test_every_layer_is_there_by_itself():
    """Seen from outside: an attack that one layer stops would not show that another is missing."""
    text = "import time; time.sleep(20)"
    thread = Thread(target=run, args=("namespaces", text, Limits(wall_s=3)))
    thread.start()
    try:
        program = None
        while program is None:
            filtered = (number for number in family(os.getpid()) if field(number, "Seccomp") == ["2"])
            program = next(filtered, None)
        assert field(program, "Uid")[0] == ("65534" if os.getuid() == 0 else str(os.getuid()))
        folder = Path(f"/proc/{program}")
        for name in ("user", "pid", "net", "mnt", "ipc", "uts"):
            assert (folder / "ns" / name).readlink() != Path(f"/proc/self/ns/{name}").readlink(), name
        assert field(program, "NoNewPrivs") == ["1"]
        for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
            assert int(field(program, name)[0], 16) == 0, name
        bounds = {line[:26].strip(): line[26:].split()[:2] for line in (folder / "limits").read_text().splitlines()}
        assert bounds["Max cpu time"] == ["10", "10"]
        assert bounds["Max address space"] == [str(1024 << 20)] * 2
        assert bounds["Max processes"] == ["33", "33"]
        assert bounds["Max file size"] == [str(16 << 20)] * 2
        assert bounds["Max open files"] == ["64", "64"]
        assert bounds["Max core file size"] == ["0", "0"]
        mounts = (folder / "mounts").read_text().splitlines()
        written = [line.split()[1] for line in mounts if line.split()[3].split(",")[0] == "rw"]
        assert written == ["/desk"]
        assert all("nosuid" in line for line in mounts)
    finally:
        thread.join()


def field(number: int, name: str) -> list[str]:
    """A line of /proc/<number>/status; empty where there is no such process any more."""
    try:
        lines = Path(f"/proc/{number}/status").read_text().splitlines()
    except OSError:
        return []
    return next((line.split()[1:] for line in lines if line.startswith(f"{name}:")), [])


def family(ancestor: int) -> set[int]:
    """The processes below `ancestor`, of all generations."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        number = int(folder.name)
        parents[number] = int((field(number, "PPid") or ["0"])[0])
    found = {ancestor}
    while more := {number for number, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {ancestor}


def alive(number: int) -> bool:
    return field(number, "State")[:1] not in ([], ["Z"])


@needs_namespaces
def test_a_launcher_that_was_killed_is_started_anew():
    from stillhouse.sandbox.boxes import _launcher

    assert run("namespaces", "print(1)", Limits()).output == b"1\n"
    assert _launcher.process is not None
    _launcher.process.kill()
    _launcher.process.wait()
    assert run("namespaces", "print(2)", Limits()).output == b"2\n"


@needs_namespaces
def test_how_a_program_ended_is_said():
    assert run("namespaces", "raise SystemExit(7)", Limits()).exit == 7
    assert b"ZeroDivisionError" in run("namespaces", "1 / 0", Limits()).output
    late = run("namespaces", "import time; time.sleep(60)", Limits(wall_s=0.3))
    assert late.timeout and late.signal == signal.SIGKILL
    busy = run("namespaces", "while True: pass", Limits(wall_s=20, cpu_s=1))
    assert not busy.timeout and busy.signal == signal.SIGKILL and 0.4 < busy.cpu_s < 2  # the kernel counts in ticks
    flood = run("namespaces", "while True: print('x' * 999)", Limits(output_kb=8))
    assert flood.flooded and len(flood.output) == 8192
    assert run("namespaces", "open('a', 'w').write('b'); print(open('a').read())", Limits()).output == b"b\n"


@needs_namespaces
def test_no_file_of_ours_stays_open_and_no_folder_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("namespaces", "pass", Limits())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        run("namespaces", "pass", Limits())
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_every_call_of_the_list(machine: str):
    """By an interpreter of its own for the five instructions that it uses."""
    for processes in (1, 2):
        program = seccomp_filter(processes, machine)
        assert program is not None
        column, architecture = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[machine]
        for name, numbers in FORBIDDEN.items():
            if numbers[column] is not None:
                assert decide(program, numbers[column], architecture) == 0x50001, name
        clone, prctl = (56, 220)[column], (157, 167)[column]
        assert decide(program, clone, architecture, 0x10F00) == 0x7FFF0000  # a thread
        assert (decide(program, clone, architecture, 17) == 0x50001) is (processes == 1)
        assert decide(program, clone, architecture, 0x10000000 | 0x10F00) == 0x50001
        assert decide(program, prctl, architecture, 1) == 0x50001
        assert decide(program, prctl, architecture, 15) == 0x7FFF0000
        assert decide(program, 0, architecture) == 0x7FFF0000
        assert decide(program, 0, 0x40000003) == 0x80000000
    assert seccomp_filter(1, "vax") is None


def decide(program: bytes, number: int | None, architecture: int, argument: int = 0) -> int:
    steps = list(struct.iter_unpack("=HBBI", program))
    data = {0: number, 4: architecture, 16: argument}
    place, held = 0, 0
    while True:
        code, yes, no, value = steps[place]
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            held = data[value] or 0
        else:
            holds = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[code]
            place += yes if holds else no


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.builds(range, st.integers(-9, 9), st.integers(-9, 9))
    | st.integers(2**70, 2**90),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.tuples(st.integers(), st.text())),
    max_leaves=20,
)  # fmt: skip


def carried(value: Any, opaque: bool = True) -> Any:
    ours, theirs = os.pipe()
    try:
        plain.send(theirs, plain.encode(value, opaque))
        return plain.decode(plain.receive(ours))
    finally:
        os.close(ours)
        os.close(theirs)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_plain_data_arrives_as_it_was(value: Any):
    found = carried(value)
    assert type(found) is type(value)
    assert repr(found) == repr(value) or found == value


def test_what_is_of_another_class_arrives_as_a_built_in_one_or_as_nothing():
    class Equal(list):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # pyright: ignore[reportAssignmentType]

        def __iter__(self):
            return iter([7])

    found = carried(Equal([1]))
    assert type(found) is list and found == [1] and found != [7]
    for value, kind in ((Counter("aab"), dict), (OrderedDict(a=1), dict), (signal.SIGKILL, int), (True, bool)):
        assert type(carried(value)) is kind and carried(value) == value
    assert list(carried(iter([1, 2]))) == [1, 2]
    assert carried({1: 2}.keys()) == {1}
    assert math.isnan(carried(math.nan)) and carried(-0.0).hex() == "-0x0.0p+0"
    strange = carried(object())
    assert type(strange) is plain.Opaque and strange != object() and strange == strange
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(strange)
    with pytest.raises(plain.Unplain, match="of type function"):
        carried(lambda: 0, opaque=False)


@pytest.mark.parametrize(
    "found",
    [
        *([], ["?"], ["i", "x"], ["d", 1], ["s", ["l"]], ["o", 1], ["o"], ["r", "a"], ["c", "1", 2], ["b", "0"]),
        *(["l", ["q"]], [["l"]], ["i", 5]),
    ],
)
def test_what_no_encoder_wrote_is_refused(found: Any):
    with pytest.raises(plain.Unplain):
        plain.decode(found)


def test_a_sandbox_that_does_not_work_is_a_mistake_that_names_why(monkeypatch: pytest.MonkeyPatch):
    from stillhouse.sandbox import choosing

    monkeypatch.setattr(choosing, "why_not", lambda kind: None if kind == "bubblewrap" else "refused")
    assert choose() == "bubblewrap"
    with pytest.raises(Mistake, match="namespaces: refused"):
        choose("namespaces")
