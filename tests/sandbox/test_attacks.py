"""165 attacks from inside a sandbox have no effect outside it; and the test would see one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stillhouse.sandbox import Ended, Kind, Limits, run, why_not
from tests.sandbox.attacks import CLASSES, FREE, PACKAGES, PRELUDE

LIMITS = Limits(wall_s=8, cpu_s=2, memory_mb=512, files_mb=8, output_kb=64)
HURRIED = Limits(wall_s=0.4, cpu_s=1, memory_mb=512, files_mb=8, output_kb=64)
CANARY = "canary-7f3a91"


@dataclass
class World:
    """What there is to be harmed: a secret, a place to write, open ports, a process, an environment with a canary."""

    folder: Path
    victim: subprocess.Popen[bytes]
    lines: list[socket.socket]
    facts: dict[str, Any] = field(default_factory=dict)

    def harm(self) -> list[str]:
        """What can be seen from outside of what an attack did."""
        found = [f"{path.name} appeared" for path in self.folder.iterdir() if path.name not in {"secret", "socket"}]
        secret = self.folder / "secret"
        if not secret.exists() or secret.read_text(encoding="ascii") != CANARY:
            found.append("the secret was changed")
        if self.victim.poll() is not None:
            found.append("the victim was killed")
        for line in self.lines:
            with suppress(BlockingIOError):
                if line.type == socket.SOCK_DGRAM:
                    line.recv(10)
                else:
                    line.accept()[0].close()
                found.append("somebody called")
        return found


def _world(folder: Path, stack: ExitStack) -> World:
    folder.chmod(0o777)  # what keeps an attack out shall be the sandbox
    (folder / "secret").write_text(CANARY, encoding="ascii")
    (folder / "secret").chmod(0o666)
    abstract = f"stillhouse-{os.getpid()}-{folder.name}"
    addresses: list[tuple[int, int, Any]] = [
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
        (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}"),
    ]
    lines = []
    for family, kind, address in addresses:
        line = stack.enter_context(socket.socket(family, kind))
        line.bind(address)
        line.setblocking(False)
        if kind == socket.SOCK_STREAM:
            line.listen()
        lines.append(line)
    (folder / "socket").chmod(0o777)
    victim = subprocess.Popen(
        ["sleep", "600"], env={"STILLHOUSE_CANARY": CANARY, "PATH": os.environ["PATH"]}, start_new_session=True
    )
    stack.callback(victim.wait)
    stack.callback(victim.kill)
    facts = {
        "secret": str(folder / "secret"), "folder": str(folder), "target": str(folder / "target"),
        "port": lines[0].getsockname()[1], "datagrams": lines[1].getsockname()[1], "socket": str(folder / "socket"),
        "abstract": abstract, "victim": victim.pid, "parent": os.getpid(), "host": socket.gethostname(),
    }  # fmt: skip
    return World(folder, victim, lines, facts)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLHOUSE_CANARY", CANARY)
        yield _world(tmp_path_factory.mktemp("world"), stack)


def program(attack: str, facts: dict[str, Any]) -> str:
    return PRELUDE.replace("{facts!r}", repr(json.dumps(facts))) + attack + "\n"


def effects(ended: Ended, limits: Limits) -> list[str]:
    """What the program's own words, and its use of what is limited, say of its success."""
    found = [word for word in ("EFFECT", CANARY) if word.encode() in ended.output]
    if len(ended.output) > limits.output_kb << 10:
        found.append("more output than it may have")
    if ended.cpu_s > limits.cpu_s + 1:
        found.append(f"{ended.cpu_s} s of processor time")
    if ended.peak_mb > limits.memory_mb + 64:
        found.append(f"{ended.peak_mb} MiB of memory")
    return found


def attacked(world: World, kind: Kind, name: str, attacks: Sequence[str]) -> list[str]:
    """What attacks of a class achieved, by their own words and as seen from outside."""
    limits = HURRIED if name in {"time", "persistence"} else LIMITS

    def achieved(attack: str) -> list[str]:
        began = time.monotonic()
        ended = run(kind, program(attack, world.facts), limits)
        found = effects(ended, limits)
        if b"SyntaxError" in ended.output or b"NameError" in ended.output:
            found.append("it is no attack: it does not even run")
        if time.monotonic() - began > limits.wall_s + 8:
            found.append("it took longer than it may")
        return [f"{attack!r}: {what}" for what in found]

    with ThreadPoolExecutor(4) as pool:
        found = [line for lines in pool.map(achieved, attacks) for line in lines]
    time.sleep(0.5 if name == "persistence" else 0)  # what outlived its sandbox would strike now
    return found + world.harm()


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_an_attack_has_no_effect(world: World, name: str):
    if why_not("namespaces"):
        pytest.skip(f"no namespaces on this machine: {why_not('namespaces')}")
    assert attacked(world, "namespaces", name, CLASSES[name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_bubblewrap_holds_as_well(world: World, name: str):
    if why_not("bubblewrap"):
        pytest.skip(f"no bubblewrap on this machine: {why_not('bubblewrap')}")
    assert attacked(world, "bubblewrap", name, CLASSES[name][::3]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_the_same_attacks_have_an_effect_without_a_sandbox(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STILLHOUSE_CANARY", CANARY)
    for place in FREE[name]:
        with ExitStack() as stack:
            folder = tmp_path / str(place)
            folder.mkdir()
            world = _world(folder, stack)
            command = [sys.executable, "-I", "-c", program(CLASSES[name][place], world.facts)]
            done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path)
            ended = Ended(done.returncode, 0, False, False, done.stdout, 0, 0)
            time.sleep(0.9 if name == "persistence" else 0)
            assert effects(ended, LIMITS) or world.harm(), CLASSES[name][place]


@pytest.mark.parametrize("kind", ["namespaces", "bubblewrap"])
def test_packages_of_the_base_interpreter_are_not_there(kind: Kind):
    """Sites install theirs for all: a program is judged by the standard library alone."""
    if why_not(kind):
        pytest.skip(f"no {kind} on this machine: {why_not(kind)}")
    outside = subprocess.run([sys.executable, "-I", "-S", "-c", PACKAGES], capture_output=True, text=True, check=True)
    if outside.stdout.startswith("[]"):
        pytest.skip("nobody has installed packages for the base interpreter, not even pip")
    ended = run(kind, PACKAGES, LIMITS)
    assert ended.output.decode().splitlines() == ["[]", "No module named 'pip'", '"here"']
    planting = PACKAGES + "open(os.path.join(sorted(places)[0], 'planted.py'), 'w')\n"
    assert b"Read-only file system" in run(kind, planting, LIMITS).output


def test_there_are_enough_attacks():
    assert len(CLASSES) >= 10
    assert len({attack for attacks in CLASSES.values() for attack in attacks}) >= 150
