from __future__ import annotations

import numpy as np
from hypothesis import given

from stillhouse.data.pieces import Pieces
from stillhouse.vocabulary import exact, min_edit, overlap, prefix
from stillhouse.vocabulary.matching import NONE, Matches
from tests.data.kinds import unigram, wordpiece
from tests.data.small import byte_level, metaspace
from tests.vocabulary.made import VOCABULARIES, vocabulary


def distance(a: str, b: str) -> int:
    """Levenshtein's, from its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


def twin_of_exact(teacher: Pieces, student: Pieces) -> list[int]:
    return [student.content.index(text) if text in student.content else NONE for text in teacher.content]


@given(teacher=VOCABULARIES, student=VOCABULARIES)
def test_exact_is_its_twin(teacher: Pieces, student: Pieces):
    found = exact(teacher, student)
    assert found.ids.dtype == np.int32
    assert found.ids.tolist() == twin_of_exact(teacher, student)


@given(teacher=VOCABULARIES, student=VOCABULARIES)
def test_prefix_is_its_twin(teacher: Pieces, student: Pieces):
    for at, found in enumerate(prefix(teacher, student).ids.tolist()):
        begins = [theirs for theirs in student.content if teacher.content[at].startswith(theirs)]
        assert found == (student.content.index(max(begins, key=len)) if begins else NONE)


@given(teacher=VOCABULARIES, student=VOCABULARIES)
def test_exact_without_blanks_is_its_twin(teacher: Pieces, student: Pieces):
    same = twin_of_exact(teacher, student)
    for at, found in enumerate(exact(teacher, student, ignore_space=True).ids.tolist()):
        bare = teacher.content[at].removeprefix(b" ")
        near = [theirs for theirs, text in enumerate(student.content) if text.removeprefix(b" ") == bare]
        if same[at] != NONE:
            assert found == same[at]
        elif near and bare:
            assert found == min(near, key=lambda theirs: (student.content[theirs] != bare, theirs))
        else:
            assert found == NONE


@given(teacher=VOCABULARIES, student=VOCABULARIES)
def test_min_edit_is_its_twin(teacher: Pieces, student: Pieces):
    same = twin_of_exact(teacher, student)
    spelt = teacher.kind == student.kind

    def string(pieces: Pieces, at: int) -> str:
        return pieces.raw[at].replace(pieces.marker, " ") if spelt else pieces.content[at].decode()

    for at, found in enumerate(min_edit(teacher, student).ids.tolist()):
        nearest = min(range(len(student)), key=lambda i: (distance(string(teacher, at), string(student, i)), i))
        assert found == (nearest if same[at] == NONE else same[at])


@given(teacher=VOCABULARIES, student=VOCABULARIES)
def test_overlap_is_all_that_both_have_one_to_one(teacher: Pieces, student: Pieces):
    teachers, students = (side.tolist() for side in overlap(teacher, student))
    assert students == sorted(set(students))
    assert len(set(teachers)) == len(teachers)
    assert all(teacher.content[a] == student.content[b] for a, b in zip(teachers, students, strict=True))
    assert {teacher.content[at] for at in teachers} == set(teacher.content) & set(student.content)


@given(teacher=VOCABULARIES, student=VOCABULARIES)
def test_counts_add_up(teacher: Pieces, student: Pieces):
    for found in (exact(teacher, student), exact(teacher, student, ignore_space=True), prefix(teacher, student)):
        assert sum(found.counts.values()) == len(teacher)
        assert found.counts["none"] == (found.ids == NONE).sum()


def ids(found: Matches) -> list[int]:
    return found.ids.tolist()


def test_of_several_tokens_for_the_same_text_the_one_spelt_the_same_then_no_byte_piece_then_the_least():
    llama = vocabulary(["<0x41>", "b", "A"], kind="sentencepiece")
    gpt2 = vocabulary(["A", "b"])
    assert ids(exact(gpt2, llama)) == [2, 1]
    assert ids(exact(llama, gpt2)) == [0, 1, 0]
    assert ids(exact(llama, llama)) == [0, 1, 2]
    twice = vocabulary(["x", "A", "A"], kind="sentencepiece")
    assert ids(exact(gpt2, twice)) == [1, NONE]
    assert [side.tolist() for side in overlap(llama, gpt2)] == [[2, 1], [0, 1]]
    assert [side.tolist() for side in overlap(gpt2, llama)] == [[1, 0], [1, 2]]


def test_special_tokens_go_by_role_and_never_by_text():
    teacher = vocabulary(
        ["</s>", "<s>", "<pad>", "<unk>", "<|a|>", "<|b|>", "</s", "x"],
        {0: "eos", 1: "bos", 2: "pad", 3: "unk", 4: "other", 5: "other"},
    )
    student = vocabulary(
        ["<|end|>", "</s>", "<|a|>", "<|unk|>", "<|b|>", "xy", "</b>"], {0: "eos", 1: "bos", 2: "other", 3: "unk"}
    )
    assert ids(exact(teacher, student)) == [0, 1, NONE, 3, 2, NONE, NONE, NONE]
    assert exact(teacher, student).counts == {"exact": 0, "role": 4, "none": 4}
    # Its nearest string is that of a special token, which stands for no text.
    assert ids(min_edit(teacher, student))[6:] == [6, 5]
    assert [side.tolist() for side in overlap(teacher, student)] == [[0], [0]]


def test_a_special_token_is_no_blank():
    teacher, student = vocabulary(["<|a|>", " b"], {0: "other"}), vocabulary([" ", "b"])
    assert ids(exact(teacher, student, ignore_space=True)) == [NONE, 1]
    assert exact(teacher, student, ignore_space=True).counts == {"exact": 0, "role": 0, "without blank": 1, "none": 1}


def test_broken_characters_are_compared_as_bytes():
    teacher = Pieces(("\u00e4\u00bd", "\u00e4"), (b"\xe4\xbd", b"\xe4"), {}, "byte_level", "\u0120", frozenset(), False)
    student = vocabulary(["<0xE4>", "<0xBD>", "\u4f60"], kind="sentencepiece")
    assert ids(exact(teacher, student)) == [NONE, 0]
    assert ids(prefix(teacher, student)) == [0, 0]
    assert ids(min_edit(teacher, student)) == [0, 0]


def test_nothing_is_nearest_where_there_is_nothing():
    nothing = vocabulary(["</s>"], {0: "eos"})
    some = vocabulary(["</s>", "a"], {0: "eos"})
    assert ids(min_edit(some, nothing)) == [0, NONE]
    assert ids(min_edit(nothing, some)) == [0]
    assert [side.tolist() for side in overlap(vocabulary(["a"]), vocabulary(["b"]))] == [[], []]


def test_every_tokenizer_is_mapped_to_itself():
    for tokenizer in (byte_level(), metaspace(), unigram(byte_fallback=True), wordpiece()):
        pieces = Pieces.of(tokenizer)
        for make in (exact, min_edit, prefix):
            assert ids(make(pieces, pieces)) == [*range(len(pieces))]


def test_kinds_meet_in_what_their_tokens_stand_for():
    tokenizers = [Pieces.of(t) for t in (byte_level(), metaspace(), unigram(byte_fallback=True), wordpiece())]
    for teacher in tokenizers:
        for student in tokenizers:
            found = exact(teacher, student)
            pairs = [(at, to) for at, to in enumerate(ids(found)) if to != NONE and at not in teacher.special]
            assert len(pairs) >= 20
            assert all(teacher.content[at] == student.content[to] for at, to in pairs)
            assert found.ids[teacher.roles["eos"]] == student.roles["eos"]
