from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stillhouse.alignment import Alignment, Side, exact, identity, position, span
from stillhouse.data.encode import Limits, encode
from stillhouse.data.example import Example, Segment
from stillhouse.data.pieces import Pieces
from stillhouse.data.rows import Row
from stillhouse.data.templates import build
from tests.alignment.tokenizers import TEXT, TOKENIZERS
from tests.data.small import CHATML, LLAMA2, byte_level, metaspace

Spans = list[tuple[int, int] | None]
NAMES = list(TOKENIZERS)


def side(ends: list[int], start: int = 0) -> Side:
    return Side(np.zeros(len(ends), np.int32), np.array(ends, np.int32), start)


def spans_of(one: Side) -> Spans:
    """(begin, end) of every predicted token, None where it is not known."""
    ends = one.spans().tolist()
    before = [one.start, *ends][: len(ends)]
    return [(begin, end) if begin >= 0 and end >= 0 else None for begin, end in zip(before, ends, strict=True)]


def stretches(one: Side) -> dict[tuple[int, int], list[int]]:
    """Every run of neighbouring tokens with known spans, by the bytes that it covers: those that have any width."""
    spans, found = spans_of(one), {}
    for first in range(len(spans)):
        tokens = []
        for at in range(first, len(spans)):
            here = spans[at]
            if here is None:
                break
            tokens += [at] * (here[1] > here[0])
            begin = spans[first]
            if begin is not None and here[1] > begin[0] and tokens:
                found.setdefault((begin[0], here[1]), list(tokens))
    return found


def slow_span(student: Side, teacher: Side) -> list[tuple[list[int], list[int]]]:
    """Of all stretches that both sides have, those that hold no smaller one."""
    of_student, of_teacher = stretches(student), stretches(teacher)
    both = of_student.keys() & of_teacher.keys()
    least = [
        (begin, end)
        for begin, end in sorted(both)
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in both)
    ]
    return [(of_student[stretch], of_teacher[stretch]) for stretch in least]


@st.composite
def sides(draw: st.DrawFn, *, unknown: bool = True) -> Side:
    ends = sorted(draw(st.lists(st.integers(0, 14), max_size=12)))
    start = draw(st.integers(0, 3)) if unknown else 0
    hidden = draw(st.sets(st.integers(0, 11), max_size=2)) if unknown else set()
    return side([-1 if at in hidden else max(end, start) for at, end in enumerate(ends)], start)


@settings(max_examples=1000)
@given(sides(), sides())
def test_span_against_the_slow_twin(student: Side, teacher: Side):
    assert span(student, teacher).groups() == slow_span(student, teacher)


@settings(max_examples=1000)
@given(sides(), sides())
def test_exact_against_the_slow_twin(student: Side, teacher: Side):
    where = {here: at for at, here in enumerate(spans_of(teacher)) if here and here[1] > here[0]}
    slow = [([at], [where[here]]) for at, here in enumerate(spans_of(student)) if here in where]
    assert exact(student, teacher).groups() == slow


def test_the_drawing():
    student, teacher = side([2, 4, 5, 8, 9]), side([2, 3, 4, 6, 8, 9])
    assert span(student, teacher).groups() == [([0], [0]), ([1], [1, 2]), ([2, 3], [3, 4]), ([4], [5])]
    assert exact(student, teacher).groups() == [([0], [0]), ([4], [5])]


def test_tokens_past_the_last_common_end_are_left_over():
    assert span(side([2, 5, 7]), side([1, 2, 4])).groups() == [([0], [0, 1])]
    assert span(side([]), side([1])).groups() == []
    assert span(side([1, 1]), side([1])).groups() == [([0], [0])]


def eta(student: list[bytes | None], teacher: list[bytes | None]) -> list[tuple[int, int]]:
    """ETA as DSKD-v2 does it: two pointers over strings; None is the end, the same on both sides."""
    pairs, said_s, said_t, i, j = [], b"", b"", 0, 0
    while i < len(student) and j < len(teacher):
        one, other = student[i], teacher[j]
        if said_s == said_t and one == other:
            pairs.append((i, j))
        moves = (len(said_s) <= len(said_t), len(said_t) <= len(said_s))
        if moves[0]:
            said_s, i = said_s + (one or b""), i + 1
        if moves[1]:
            said_t, j = said_t + (other or b""), j + 1
    return pairs


@settings(max_examples=500)
@given(st.text("abc", min_size=1, max_size=12), st.sets(st.integers(1, 11)), st.sets(st.integers(1, 11)))
def test_exact_is_eta_on_strings(text: str, cuts: set[int], others: set[int]):
    sides, words = [], []
    for cut in (cuts, others):
        ends = [*sorted(end for end in cut if end < len(text)), len(text)]
        words.append([text[b:e].encode() for b, e in zip([0, *ends[:-1]], ends, strict=True)] + [None])
        sides.append(side([*ends, len(text) + 1]))
    pairs = eta(*words)
    assert exact(*sides).groups() == [([i], [j]) for i, j in pairs]


PAIRS = [(a, b) for a in NAMES for b in NAMES if a < b]
TEXTS = (Segment("Q?", False),)


def scored(tokenizer: PreTrainedTokenizerFast, text: str, limits: Limits, spans: str = "bytes") -> Side:
    encoding = encode(Example((*TEXTS, Segment(text, True)), "t"), tokenizer, limits, spans)  # type: ignore[arg-type]
    return Side.of({"input_ids": encoding.input_ids, "scored": encoding.scored, "ends": encoding.ends})


def check(alignment: Alignment, student: Side, teacher: Side) -> int:
    """Both sides of a group cover the same bytes and every pair of neighbours shares some; the bytes covered."""
    total, of_student, of_teacher = 0, spans_of(student), spans_of(teacher)
    for ours, theirs in alignment.groups():
        stretch = []
        for known, at in ((of_student, ours), (of_teacher, theirs)):
            spans = [here for here in map(known.__getitem__, at) if here is not None]
            assert len(spans) == len(at) and all(begin < end for begin, end in spans)
            stretch.append((spans[0][0], spans[-1][1]))
            assert sum(end - begin for begin, end in spans) == stretch[-1][1] - stretch[-1][0]
        assert stretch[0] == stretch[1]
        total += stretch[0][1] - stretch[0][0]
    return total


@settings(max_examples=60)
@given(TEXT)
def test_groups_cover_every_byte_whatever_the_tokenizers(text: str):
    for a, b in PAIRS:
        student, teacher = (scored(TOKENIZERS[name], text, Limits(100_000, 50_000)) for name in (a, b))
        assert check(span(student, teacher), student, teacher) == len(text.encode()) + 1


@settings(max_examples=40)
@given(TEXT, st.integers(4, 20))
def test_what_a_cut_leaves_is_aligned_up_to_the_last_common_end(text: str, most: int):
    for a, b in PAIRS:
        student, teacher = (scored(TOKENIZERS[name], text, Limits(most, 2)) for name in (a, b))
        ends = set(student.spans().tolist()) & set(teacher.spans().tolist())
        assert check(span(student, teacher), student, teacher) == max(ends, default=0)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["The", " capital", "  of", "\n", " Paris.", "12", "é", " "]), max_size=9).map("".join))
def test_solid_spans_give_eta_of_real_tokens(text: str):
    names = ("byte level", "unigram, bytes")
    sides = [scored(TOKENIZERS[name], text, Limits(1_000, 500), "solid") for name in names]
    words: list[list[bytes | None]] = []
    places: list[list[int]] = []
    for name in names:
        tokenizer = TOKENIZERS[name]
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        solid = [Pieces.of(tokenizer).content[index].replace(b" ", b"") for index in ids]  # type: ignore[index]
        places.append([*(at for at, word in enumerate(solid) if word), len(solid)])  # a blank alone says nothing
        words.append([*(word for word in solid if word), None])
    expected = [([places[0][i]], [places[1][j]]) for i, j in eta(words[0], words[1])]
    assert exact(sides[0], sides[1]).groups() == expected


def test_turns_of_a_conversation_close_together_whatever_their_templates():
    contents = ("Hi", " I am fine\n", "And you?", "It is four. ")
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    both = []
    for tokenizer in (byte_level(CHATML), metaspace(LLAMA2)):
        (chat,) = build("chat", tokenizer).examples(Row({"messages": messages}, "t"))
        encoding = encode(chat, tokenizer, Limits(1_000, 500), spans="bytes")
        both.append(
            (encoding, Side.of({"input_ids": encoding.input_ids, "scored": encoding.scored, "ends": encoding.ends}))
        )
    (ours, student), (theirs, teacher) = both
    alignment = span(student, teacher)
    assert check(alignment, student, teacher) == sum(len(text.encode()) + 1 for text in contents[1::2])
    said = [encoding.input_ids[1:][encoding.scored[:-1]] for encoding in (ours, theirs)]
    named = [(said[0][s[-1]], said[1][t[-1]]) for s, t in alignment.groups() if said[0][s[-1]] == 2]
    assert named == [(2, 2), (2, 2)]  # <|im_end|> with </s>, twice
    assert exact(student, teacher).groups()[-1][0] == [len(student) - 2]


def test_positions_and_identity():
    student, teacher = side([1, 2, 3]), side([4, 5])
    assert position(student, teacher).groups() == [([0], [0]), ([1], [1])]
    assert identity(teacher, teacher).groups() == [([0], [0]), ([1], [1])]
    with pytest.raises(ValueError, match="3 student positions and 2 teacher positions"):
        identity(student, teacher)


def test_without_spans_there_is_no_span_alignment():
    with pytest.raises(ValueError, match="no spans"):
        span(Side(np.zeros(1, np.int32)), side([1]))
