"""What is written beside the code is true: the page of methods, and every recipe that is shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.catalogue import METHODS, Entry, Parameter
from stillhouse.catalogue.page import markdown
from stillhouse.recipe import parse
from tests.habits.tree import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))


def test_the_page_of_methods_is_the_catalogue():
    """After a change: stillhouse methods --markdown > docs/methods.md."""
    assert (ROOT / "docs" / "methods.md").read_text() == markdown()


def test_the_page_says_everything_of_an_entry(monkeypatch: pytest.MonkeyPatch):
    parameters = {"slope": Parameter(1.5, "of the line", 0.0, 9.0, open_low=True, aliases=("s",), fixed=True)}
    entry = Entry("new", "Someone, 2026", "a thing", parameters, ("other",), formula="a + b", official="It is wrong.")
    monkeypatch.setitem(METHODS, "new", entry)
    section = markdown().partition("## new")[2]
    for said in (
        "`other`",
        "A thing. (Someone, 2026)",
        "    a + b",
        "| `slope` [s] | 1.5 | above 0 to 9; fixed | of the line |",
    ):
        assert said in section
    assert section.strip().endswith("*The official code.* It is wrong.")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_is_read(path: Path):
    verb = "sft" if path.stem.startswith("sft") else "distill"
    recipe = parse(verb, [str(path)])
    assert recipe.entry.needs_teacher == (recipe.teacher is not None)


def test_there_are_recipes():
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_formula(name: str):
    assert METHODS[name].formula
    assert METHODS[name].summary
