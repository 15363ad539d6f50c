"""A recipe is checked and `--help` answers at once: what they import leaves torch alone."""

from __future__ import annotations

import subprocess
import sys

from tests.habits.tree import ROOT

LIGHT = (
    "stillhouse",
    "stillhouse.catalogue",
    "stillhouse.mistakes",
    "stillhouse.progress",
    "stillhouse.recipe",
    "stillhouse.cli",
)
HEAVY = ("torch", "transformers", "datasets", "accelerate", "pandas", "pyarrow", "matplotlib")


def loaded(modules: tuple[str, ...], suspects: tuple[str, ...]) -> list[str]:
    """Which of `suspects` a fresh interpreter holds after importing `modules`."""
    script = f"import sys, {', '.join(modules)}; print(*(name for name in {suspects!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_recipe_and_command_line_leave_torch_alone():
    assert loaded(LIGHT, HEAVY) == []


def test_a_planted_import_is_found():
    assert loaded(("json",), ("json.decoder", "sqlite3")) == ["json.decoder"]
