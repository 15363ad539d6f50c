"""The rating that a reply ends with, and what is none."""

from __future__ import annotations

import pytest

from stillhouse.data.questions import Question
from stillhouse.evaluation.judge import judging, rating, reminding


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Good. Rating: [[8]]", 8.0),
        ("[[7.5]]", 7.5),
        ("[[7,5]]", 7.5),
        ("[[8/10]]", 8.0),
        ("[[ 9.0 / 10 ]].", 9.0),
        ("[[6 out of 10]]", 6.0),
        ("[[Rating: 4]]", 4.0),
        ("At first [[9]], but after the second error: [[2]]", 2.0),
        ("[[10]]", 10.0),
        ("[[1]]", 1.0),
        ("As you asked: [[rating]]", None),
        ("8", None),
        ("[8]", None),
        ("Rating: 8/10", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[-3]]", None),
        ("[[8/100]]", None),
        ("[[8/5]]", None),
        ("[[]]", None),
        ("", None),
        ("[[3]] and finally [[30]]", None),
    ],
)
def test_the_last_rating_from_1_to_10_counts(reply, expected):
    assert rating(reply) == expected


def question(category: str, *references: str | None) -> Question:
    first, second = (*references, None, None)[:2]
    return Question("1", category, ("What is 2 + 3?", "And doubled?"), (first, second), "here")


def test_a_judge_sees_the_turns_up_to_the_one_it_grades():
    first, second = (judging(question("writing"), ("five!", "ten!"), turn) for turn in (0, 1))
    assert [message["role"] for message in first] == ["system", "user"]
    assert "[[5]]" in first[0]["content"]
    for text in ("What is 2 + 3?", "five!"):
        assert text in first[1]["content"]
        assert text in second[1]["content"]
    assert "doubled" not in first[1]["content"]
    assert "ten!" not in first[1]["content"]
    assert second[1]["content"].index("five!") < second[1]["content"].index("And doubled?")
    assert second[1]["content"].index("And doubled?") < second[1]["content"].index("ten!")
    assert "second" in second[0]["content"]
    assert "second" not in first[0]["content"]


@pytest.mark.parametrize("category", ["math", "reasoning", "coding"])
def test_a_reference_is_shown_where_answers_are_right_or_wrong(category):
    asked = question(category, "It is 5.", "It is 10.")
    first, second = (judging(asked, ("a", "b"), turn) for turn in (0, 1))
    assert "It is 5." in first[1]["content"]
    assert "It is 10." not in first[1]["content"]
    assert "It is 5." in second[1]["content"]
    assert "It is 10." in second[1]["content"]
    assert "reference" in first[0]["content"]


def test_a_reference_is_not_shown_elsewhere_nor_missed():
    assert "It is 5." not in str(judging(question("writing", "It is 5."), ("a", "b"), 0))
    assert "reference" not in str(judging(question("math"), ("a", "b"), 1))


def test_a_judge_is_reminded_of_the_form_with_its_last_reply():
    messages = judging(question("math"), ("a", "b"), 0)
    assert reminding(messages, []) == messages
    again = reminding(messages, ["very good", "excellent"])
    assert again[: len(messages)] == messages
    assert [message["role"] for message in again[-2:]] == ["assistant", "user"]
    assert again[-2]["content"] == "excellent"
    assert "[[5]]" in again[-1]["content"]
