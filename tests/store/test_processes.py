"""Real processes: several at the same artifacts, and some that are killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from stillhouse import store

WRITER = """
import sys
from pathlib import Path
from stillhouse import store
root, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for count in range(times):
    store.write_text(root / "file.txt", f"{name} {count} " * 500)
    with store.write_folder(root / "last") as folder:
        for part in "abc":
            (folder / part).write_text(f"{name} {count} {part} " * 500)
    store.append_line(root / "log", f"{name} {count}")
"""


def start(root: Path, name: str, times: int) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", WRITER, str(root), name, str(times)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_all(root: Path) -> None:
    text = store.read_text(root / "file.txt")
    assert text == text[: len(text) // 500] * 500
    folder = store.find_folder(root / "last")
    written_by = {(folder / part).read_text().split(" ")[0:2][1] for part in "abc"}
    assert len(written_by) == 1


def test_three_processes_write_the_same_artifacts(tmp_path: Path):
    writers = [start(tmp_path, name, 12) for name in "xyz"]
    for writer in writers:
        _, said = writer.communicate(timeout=100)
        assert writer.returncode == 0, said
    check_all(tmp_path)
    lines = store.read_lines(tmp_path / "log")
    assert sorted(lines) == sorted(f"{name} {count}" for name in "xyz" for count in range(12))
    assert {path.name for path in tmp_path.iterdir()} == {"file.txt", "file.txt.xxh3", "last", "log"}


def test_processes_are_killed(tmp_path: Path):
    start(tmp_path, "first", 1).communicate()
    draw = random.Random(7)
    for number in range(12):
        with start(tmp_path, str(number), 10_000) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(draw.uniform(0, 0.15))
            writer.kill()
        check_all(tmp_path)
        assert all(line.count(" ") == 1 for line in store.read_lines(tmp_path / "log"))
    start(tmp_path, "last", 1).communicate()
    assert {path.name for path in tmp_path.iterdir()} == {"file.txt", "file.txt.xxh3", "last", "log"}
    assert store.read_text(tmp_path / "file.txt").startswith("last 0")
