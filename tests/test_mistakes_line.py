"""The one line of a mistake: short, whole where it can be, and its place told by its end."""

from __future__ import annotations

from stillhouse.mistakes import LONGEST_LINE, Mistake, nearest, unknown_name


def test_a_long_place_loses_its_beginning_and_the_rest_stays_whole() -> None:
    line = str(Mistake("/home/" + "deep/" * 60 + "train.jsonl:17", "is no object", "remove the line"))
    assert line.endswith("deep/train.jsonl:17: is no object; remove the line")
    assert line.startswith("...") and len(line) < LONGEST_LINE


def test_a_long_complaint_loses_its_middle() -> None:
    line = str(Mistake("key", "a" * 150 + "b" * 150, "mend it"))
    assert len(line) == LONGEST_LINE
    assert line.startswith("key: aaa") and line.endswith("bbb; mend it")


def test_white_space_and_lines_become_one_line() -> None:
    assert str(Mistake("", "one\n  two", "three")) == "one two; three"


def test_the_nearest_name_ignores_case_and_dashes() -> None:
    assert nearest("Forward-KL", ["forward_kl", "reverse_kl"]) == "forward_kl"
    assert nearest("qqqq", ["forward_kl"]) is None
    assert str(unknown_name("", "verb", "qqqq", ["b", "a"])) == "unknown verb 'qqqq'; known: a, b"
    assert str(unknown_name("", "method", "fk", ["forward"], ["fkl"])) == "unknown method 'fk'; did you mean 'fkl'?"
