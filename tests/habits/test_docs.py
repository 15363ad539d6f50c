"""What is written beside the code is true: the page of methods is the catalogue."""

from __future__ import annotations

import pytest

from stillhouse.catalogue import METHODS, Entry, Parameter
from stillhouse.catalogue.compositions import page
from stillhouse.catalogue.page import markdown
from tests.habits.tree import ROOT


def test_the_page_of_methods_is_the_catalogue():
    """After a change: stillhouse methods --markdown > docs/methods.md."""
    assert (ROOT / "docs" / "methods.md").read_text() == markdown()


def test_the_page_of_compositions_is_the_catalogue():
    """After a change: stillhouse methods --compositions > docs/compositions.md."""
    assert (ROOT / "docs" / "compositions.md").read_text() == page()


def test_the_page_says_everything_of_an_entry(monkeypatch: pytest.MonkeyPatch):
    parameters = {"slope": Parameter(1.5, "of the line", 0.0, 9.0, open_low=True, aliases=("s",), fixed=True)}
    entry = Entry("new", "Someone, 2026", "a thing", parameters, ("other",), formula="a + b", official="It is wrong.",
                  rollout={"source": "student", "replay": True}, sources=("student",))  # fmt: skip
    monkeypatch.setitem(METHODS, "new", entry)
    section = markdown().partition("## new")[2].partition("\n# ")[0]
    for said in (
        "`other`",
        "A thing. (Someone, 2026)",
        "    a + b",
        "| `slope` [s] | 1.5 | above 0 to 9; fixed | of the line |",
        "*Who writes.* `rollout: {source: student, replay: true}` unless the recipe gives other settings; it learns "
        "from student text alone.",
    ):
        assert said in section
    assert section.strip().endswith("*The official code.* It is wrong.")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_formula(name: str):
    assert METHODS[name].formula
    assert METHODS[name].summary
