"""What the README shows works: its recipe is read as it stands, and its tables name what exists."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from stillhouse.catalogue import METHODS
from stillhouse.recipe import OPTIONS, parse
from tests.habits.tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """The indented blocks of a Markdown text."""
    return [textwrap.dedent(found) for found in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)]


def first_column(text: str, title: str) -> set[str]:
    """The names in backquotes in the first column of the table under a heading."""
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = [row.split("|")[1] for row in section.splitlines() if row.startswith("|")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_its_recipe_is_read_and_makes_the_folder_that_it_names(tmp_path: Path):
    recipe = next(block for block in blocks(README) if block.startswith("student:"))
    assert len(recipe.splitlines()) == 10
    command = next(line for block in blocks(README) for line in block.splitlines() if " distill " in line)
    file_name, option = command.split()[2:]
    (tmp_path / file_name).write_text(recipe, encoding="utf-8")
    parsed = parse("distill", [str(tmp_path / file_name), option])
    assert f"`{parsed.folder.as_posix()}/`" in README
    assert f"--training.learning_rate={parsed.training['learning_rate']:.0e}".replace("e-0", "e-") == option


def test_its_tables_name_every_verb_and_every_method():
    assert first_column(README, "Verbs") == set(OPTIONS)
    assert first_column(README, "Methods") == set(METHODS)


def test_a_planted_table_is_read():
    text = "\n## Verbs\n\n| verb | does |\n|---|---|\n| `a`, `b` | `c` |\n\n## Methods\n| `d` |\n"
    assert first_column(text, "Verbs") == {"a", "b"}
