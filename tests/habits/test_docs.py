"""What is written beside the code is true: pages of methods are the catalogue, commands and options are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from stillhouse.catalogue import METHODS, Entry, Parameter
from stillhouse.catalogue.compositions import page
from stillhouse.catalogue.page import markdown
from stillhouse.cli.help import of_verb
from stillhouse.recipe import OPTIONS, parse
from tests.habits.tree import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FREE = ("training", "method", "alignment", "vocabulary", "rollout")  # sections whose keys are not all in the help
EVERYWHERE = {"help", "print_config", "dry-run", "version"}


def commands(text: str) -> list[list[str]]:
    """The words, from the verb on, of every stillhouse command that is set off or stands in backquotes."""
    lines = re.findall(r"^ {4}(?:torchrun .*-m |\.venv/bin/)?stillhouse (.+)$", text, re.MULTILINE)
    return [shlex.split(line.partition("  ")[0]) for line in (*lines, *re.findall(r"`stillhouse ([^`]+)`", text))]


def verb_of(words: list[str]) -> tuple[str, list[str]]:
    """The verb, of two words where there is one, and what follows it."""
    both = " ".join(words[:2])
    return (both, words[2:]) if both in OPTIONS else (words[0], words[1:])


def options_of(verb: str) -> set[str]:
    """The keys that the help of a verb names."""
    return set(re.findall(r"^  ([\w.]+)=", of_verb(verb, "it does", ""), re.MULTILINE)) | EVERYWHERE


def wrong_words(words: list[str]) -> list[str]:
    """What of a command is no verb or no option of it."""
    verb, rest = verb_of(words)
    if verb not in OPTIONS:
        return [verb]
    given = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
    known = options_of(verb)
    return [key for key in given if not {key, key.replace("-", "_")} & known and key.partition(".")[0] not in FREE]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page: Path):
    for words in commands(page.read_text(encoding="utf-8")):
        assert not wrong_words(words), words


def test_every_evaluation_of_its_page_would_be_taken():
    found = [verb_of(words) for words in commands((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"))]
    assert {verb for verb, _ in found} == {verb for verb in OPTIONS if verb.startswith("evaluate")} | {
        "suite",
        "report",
    }
    for verb, rest in found:
        if verb.startswith("evaluate") and "--model=outputs/gpt2/todi/todi" in rest:
            parse(verb, rest)


def test_every_option_that_the_page_of_evaluation_names_is_one():
    named = re.findall(r"`--([a-z][\w-]*)", (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"))
    known = {key for verb in OPTIONS if verb.startswith("evaluate") or verb == "suite" for key in options_of(verb)}
    assert len(named) > 20
    assert {name.replace("-", "_") for name in named} <= known


def test_a_wrong_command_is_seen():
    text = "    stillhouse evaluate --modle=m  twice\n    torchrun -m stillhouse evalute\n`stillhouse suite --rws`\n"
    assert [wrong_words(words) for words in commands(text)] == [["modle"], ["evalute"], ["rws"]]
