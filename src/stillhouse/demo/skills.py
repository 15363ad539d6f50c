"""Ten small skills asked in plain words: a seeded generator of instruction data with exact answers.

A question is a skill's fact in one of two wordings behind a politeness prefix. Whether it may be trained on is
decided by a hash of the whole question, so that every held-out prompt is a string that no model has seen; the fact
that it asks for may have been seen in other words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from random import Random

HELD_OUT_PERCENT = 10

PREFIXES = ("", "Please: ", "Hello! ", "Question: ", "Tell me: ", "Kindly: ", "Thanks! ")

WORDS = (
    "apple", "bread", "brick", "cloud", "crown", "dance", "dream", "eagle", "field", "flame", "garden", "grape", "hat",
    "honey", "house", "ice", "island", "juice", "kettle", "knife", "lamp", "lemon", "light", "maple", "mirror", "moon",
    "night", "ocean", "owl", "paper", "pencil", "queen", "river", "sand", "silver", "stone", "sun", "table", "tiger",
    "train", "valley", "violin", "water", "window", "winter", "wolf",
)  # fmt: skip

MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30,
    "July": 31, "August": 31, "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip

UNITS = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("metres", "centimetres", 100),
    ("years", "months", 12),
)

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("high", "low"), ("old", "young"), ("wet", "dry"),
    ("light", "dark"), ("hard", "soft"), ("early", "late"), ("full", "empty"), ("open", "closed"), ("rich", "poor"),
    ("strong", "weak"), ("happy", "sad"), ("near", "far"), ("clean", "dirty"), ("loud", "quiet"), ("thick", "thin"),
    ("left", "right"), ("true", "false"),
)  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Ireland": "Dublin", "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo",
    "Kenya": "Nairobi", "Peru": "Lima", "Chile": "Santiago", "Cuba": "Havana", "Canada": "Ottawa",
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A question in two wordings, the sentence that answers it with a gap, and what belongs into the gap."""

    wordings: tuple[str, str]
    sentence: str
    answer: str


def product(random: Random) -> Fact:
    """The product of two digits."""
    a, b = random.randrange(10), random.randrange(10)
    return Fact((f"What is {a} times {b}?", f"Multiply {a} by {b}."), f"{a} times {b} is {{}}.", str(a * b))


def word_count(random: Random) -> Fact:
    """The number of words in a list of two to five."""
    words = random.sample(WORDS, random.randint(2, 5))
    listed = ", ".join(words)
    wordings = (f"How many words are in this list: {listed}?", f"Count these words: {listed}.")
    return Fact(wordings, "There are {} words in the list.", str(len(words)))


def month(random: Random) -> Fact:
    """The days of a month, or the month after it."""
    names = list(MONTHS)
    place = random.randrange(12)
    name = names[place]
    if random.random() < 0.5:
        wordings = (f"How many days are in {name}?", f"Give the number of days of {name}.")
        return Fact(wordings, f"{name} has {{}} days.", str(MONTHS[name]))
    wordings = (f"Which month comes after {name}?", f"Name the month that follows {name}.")
    return Fact(wordings, f"The month after {name} is {{}}.", names[(place + 1) % 12])


def capital_letters(random: Random) -> Fact:
    """A word in capital letters."""
    word = random.choice(WORDS)
    wordings = (f"Write the word {word} in capital letters.", f"How does {word} look in upper case?")
    return Fact(wordings, "In capital letters it is {}.", word.upper())


def edge_letter(random: Random) -> Fact:
    """The first or the last letter of a word."""
    word = random.choice(WORDS)
    edge, letter = random.choice((("first", word[0]), ("last", word[-1])))
    wordings = (f"What is the {edge} letter of {word}?", f"Which letter comes {edge} in the word {word}?")
    return Fact(wordings, f"The {edge} letter of {word} is {{}}.", letter)


def word_length(random: Random) -> Fact:
    """The number of letters of a word."""
    word = random.choice(WORDS)
    wordings = (f"How many letters does the word {word} have?", f"Give the length of {word}.")
    return Fact(wordings, f"The word {word} has {{}} letters.", str(len(word)))


def parity(random: Random) -> Fact:
    """Whether a number up to 60 is odd or even."""
    number = random.randint(1, 60)
    wordings = (f"Is {number} odd or even?", f"Decide whether {number} is an odd or an even number.")
    return Fact(wordings, f"The number {number} is {{}}.", "odd" if number % 2 else "even")


def unit_conversion(random: Random) -> Fact:
    """Two to twelve of a unit, in a smaller unit."""
    (large, small, factor), number = random.choice(UNITS), random.randint(2, 12)
    wordings = (f"How many {small} are in {number} {large}?", f"Convert {number} {large} to {small}.")
    return Fact(wordings, f"There are {{}} {small} in {number} {large}.", str(number * factor))


def opposite(random: Random) -> Fact:
    """The opposite of an adjective."""
    pair = random.choice(OPPOSITES)
    word, answer = pair if random.random() < 0.5 else pair[::-1]
    wordings = (f"What is the opposite of {word}?", f"Name a word that means the opposite of {word}.")
    return Fact(wordings, f"The opposite of {word} is {{}}.", answer)


def capital_city(random: Random) -> Fact:
    """The capital of a country."""
    country, city = random.choice(list(CAPITALS.items()))
    wordings = (f"What is the capital of {country}?", f"Which city is {country} governed from?")
    return Fact(wordings, f"The capital of {country} is {{}}.", city)


SKILLS: tuple[Callable[[Random], Fact], ...] = (
    product, word_count, month, capital_letters, edge_letter,
    word_length, parity, unit_conversion, opposite, capital_city,
)  # fmt: skip


def rows(random: Random, *, held_out: bool, wrong_share: float = 0.0) -> Iterator[dict[str, str]]:
    """Endless `{instruction, input, output}` rows of one side of the split; `wrong_share` of the outputs are wrong."""
    while True:
        skill = random.choice(SKILLS)
        fact = skill(random)
        instruction = random.choice(PREFIXES) + random.choice(fact.wordings)
        if is_held_out(instruction) == held_out:
            answer = _wrong_answer(skill, fact, random) if random.random() < wrong_share else fact.answer
            yield {"instruction": instruction, "input": "", "output": fact.sentence.format(answer)}


def distinct(stream: Iterator[dict[str, str]], count: int, beside: Collection[str] = ()) -> list[dict[str, str]]:
    """The first `count` rows of `stream` whose instructions differ from each other and from those in `beside`."""
    seen, chosen = set(beside), []
    while len(chosen) < count:
        row = next(stream)
        if row["instruction"] not in seen:
            seen.add(row["instruction"])
            chosen.append(row)
    return chosen


def is_held_out(instruction: str) -> bool:
    """Whether the hash of a question puts it among the held-out ones, the same on every machine."""
    digest = hashlib.sha256(instruction.encode()).digest()
    return int.from_bytes(digest[:8]) % 100 < HELD_OUT_PERCENT


def _wrong_answer(skill: Callable[[Random], Fact], fact: Fact, random: Random) -> str:
    """Another answer that the same skill gives to a question of the same kind: wrong, and not absurd."""
    while True:
        other = skill(random).answer
        if other != fact.answer and other.isdigit() == fact.answer.isdigit():
            return other
