import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from stillhouse.demo import skills

MANY = 4_000
FROZEN = {"instruction": "Question: Is 41 odd or even?", "input": "", "output": "The number 41 is odd."}


def _rows(seed: str, **options):
    return list(islice(skills.rows(Random(seed), **{"held_out": False, **options}), MANY))


def _answer(question: str) -> str | None:
    """The answer that a reader of the question's words gives, by other means than the generator's."""
    for prefix in skills.PREFIXES[1:]:
        question = question.removeprefix(prefix)
    opposites = dict(skills.OPPOSITES) | {b: a for a, b in skills.OPPOSITES}
    factors = {(large, small): factor for large, small, factor in skills.UNITS}
    after = dict(zip(skills.MONTHS, [*list(skills.MONTHS)[1:], "January"], strict=True))
    readings = (
        (r"(?:What is|Multiply) (\d) (?:times|by) (\d)[?.]", lambda a, b: str(int(a) * int(b))),
        (r"(?:How many words are in this list|Count these words): (.*)[?.]", lambda words: str(words.count(",") + 1)),
        (r"(?:How many days are in|Give the number of days of) ([A-Z]\w+)[?.]", lambda m: str(skills.MONTHS[m])),
        (r"(?:Which month comes after|Name the month that follows) (\w+)[?.]", after.get),
        (r"(?:Write the word|How does) (\w+) (?:in capital letters|look in upper case)[?.]", str.upper),
        (r"What is the first letter of (\w+)\?|Which letter comes first in the word (\w+)\?", lambda a, b: (a or b)[0]),
        (r"What is the last letter of (\w+)\?|Which letter comes last in the word (\w+)\?", lambda a, b: (a or b)[-1]),
        (r"(?:How many letters does the word|Give the length of) (\w+)(?: have)?[?.]", lambda word: str(len(word))),
        (r"(?:Is|Decide whether) (\d+) .*(?:odd|even).*[?.]", lambda n: ("even", "odd")[int(n[-1]) % 2]),
        (r"How many (\w+) are in (\d+) (\w+)\?", lambda small, n, large: str(int(n) * factors[large, small])),
        (r"Convert (\d+) (\w+) to (\w+)\.", lambda n, large, small: str(int(n) * factors[large, small])),
        (r"(?:What is|Name a word that means) the opposite of (\w+)[?.]", opposites.get),
        (r"What is the capital of (\w+)\?|Which city is (\w+) governed from\?", lambda a, b: skills.CAPITALS[a or b]),
    )
    for pattern, read in readings:
        match = re.fullmatch(pattern, question)
        if match:
            return read(*match.groups())
    return None


def test_every_answer_is_right():
    for row in _rows("right"):
        answer = _answer(row["instruction"])
        assert answer is not None, row
        assert re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", row["output"]), row


def test_ten_skills_in_two_wordings_behind_every_prefix():
    assert len(skills.SKILLS) == 10 and len(set(skills.PREFIXES)) == len(skills.PREFIXES)
    for skill in skills.SKILLS:
        for _ in range(20):
            fact = skill(Random("two"))
            assert len(set(fact.wordings)) == 2 and fact.sentence.count("{}") == 1
    prefixes = Counter(
        next(p for p in reversed(skills.PREFIXES) if row["instruction"].startswith(p)) for row in _rows("p")
    )
    assert min(prefixes[prefix] for prefix in skills.PREFIXES) > MANY / len(skills.PREFIXES) / 2


def test_skills_are_drawn_alike():
    drawn = Counter(_kind(row["output"]) for row in _rows("alike"))
    assert len(drawn) == 10 and max(drawn.values()) < 1.4 * min(drawn.values())


def _kind(sentence: str) -> str:
    kinds = {
        "product": r"\d times",
        "count": r"words in the list",
        "upper case": "In capital letters",
        "edge": r"The (first|last) letter",
        "length": r"The word \w+ has",
        "parity": "The number",
        "opposite": "The opposite",
        "capital": "The capital",
        "month": r"\w+ has \d+ days|The month after",
        "unit": r"There are \d+ \w+ in \d+",
    }
    return next(name for name, pattern in kinds.items() if re.search(pattern, sentence))


def test_the_same_seed_gives_the_same_rows_on_every_machine():
    assert next(skills.rows(Random("frozen"), held_out=False)) == FROZEN
    assert [number for number in range(40) if skills.is_held_out(str(number))] == [16, 23, 32]
    assert _rows("a")[:9] == _rows("a")[:9] != _rows("b")[:9]


def test_the_split_is_by_the_whole_question_and_disjoint():
    train, test = ({row["instruction"] for row in _rows("s", held_out=side)} for side in (False, True))
    assert not train & test and not any(map(skills.is_held_out, train)) and all(map(skills.is_held_out, test))
    every = [skill(Random(seed)).wordings[0] for seed in range(400) for skill in skills.SKILLS]
    assert 0.05 < sum(map(skills.is_held_out, set(every))) / len(set(every)) < 0.15


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_labels_is_wrong_and_none_of_them_right(share):
    rows = _rows("wrong", wrong_share=share)
    wrong = [row for row in rows if not re.search(rf"(?<!\w){_answer(row['instruction'])}(?!\w)", row["output"])]
    # A wrong number may stand elsewhere in its sentence ("3 times 3 is 3."), so a few wrong ones are not seen here.
    assert share * 0.95 - 0.03 < len(wrong) / len(rows) <= share + 0.03


def test_distinct_rows_differ_from_each_other_and_from_those_beside_them():
    first = skills.distinct(skills.rows(Random(1), held_out=False), 300)
    beside = {row["instruction"] for row in first}
    second = skills.distinct(skills.rows(Random(1), held_out=False), 300, beside)
    assert len(beside | {row["instruction"] for row in second}) == 600
