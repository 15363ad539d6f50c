from __future__ import annotations

import numpy as np
import pytest

from stillhouse.alignment import ALIGNERS, Alignment, Coverage, Side, build
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.example import Example, Segment
from stillhouse.data.pieces import Pieces
from stillhouse.mistakes import Mistake
from tests.alignment.tokenizers import TOKENIZERS


def example(text: str) -> Example:
    return Example((Segment("Q?", False), Segment(text, True)), "t")


def test_every_aligner_has_its_name_and_takes_what_it_asks_for():
    student, teacher = TOKENIZERS["byte level"], TOKENIZERS["unigram, bytes"]
    pieces = Pieces.of(student), Pieces.of(teacher)
    for name, aligner in ALIGNERS.items():
        if aligner.weighted:
            with pytest.raises(ValueError, match="needs entropies"):
                build(name, *pieces)
            continue
        if name == "dtw_matched":
            with pytest.raises(ValueError, match="needs a map of tokens"):
                build(name, *pieces)
        align = build(name, pieces[0], pieces[0] if name == "dtw_matched" else pieces[1], np.arange(len(pieces[0])))
        spans = aligner.spans
        sides = [
            Side.of(encode_all([example("The capital of Paris")], one, Limits(100, 50), spans=spans)[0][0])
            for one in (student, student if name in ("identity", "dtw_matched") else teacher)
        ]
        assert len(align(*sides)) > 0
    with pytest.raises(Mistake, match=r"alignment: unknown aligner 'spam'; did you mean 'span'\?"):
        build("spam")
    with pytest.raises(ValueError, match="needs the tokens of both sides"):
        build("dtw")


def test_a_side_begins_where_what_comes_before_it_ends():
    tokenizer = TOKENIZERS["byte level"]
    text = Example((Segment("The capital", True),), "t")
    item = encode_all([text], tokenizer, Limits(100, 50), spans="bytes")[0][0]
    side = Side.of(item)
    assert side.start == item["ends"][0] > 0
    assert side.inputs.tolist() == item["input_ids"][:-1].tolist()
    assert side.spans().tolist() == item["ends"][1:].tolist()
    assert Side.of(encode_all([example("The")], tokenizer, Limits(100, 50), spans="bytes")[0][0]).start == 0
    assert Side.of({"input_ids": np.arange(3), "scored": np.zeros(3, bool), "ends": np.full(3, -1)}).start == 0


def test_rows_as_lists_and_back():
    rows = [([0], [0]), ([1, 2], [1]), ([4], [3, 5])]
    alignment = Alignment.of_groups(rows)
    assert (len(alignment), alignment.groups()) == (3, rows)
    assert [sizes.tolist() for sizes in alignment.sizes()] == [[1, 2, 1], [1, 1, 2]]
    assert alignment.student_bounds.tolist() == [0, 1, 3, 4]
    none = Alignment.of_groups([])
    assert (len(none), none.groups()) == (0, [])
    assert Alignment.one_to_one(np.array([1, 3]), np.array([0, 2])).groups() == [([1], [0]), ([3], [2])]


def test_coverage_counts_kinds_tokens_and_bytes():
    coverage = Coverage()
    student = Side(np.zeros(6, np.int32), np.array([2, 4, 5, 8, 9, 11], np.int32))
    teacher = Side(np.zeros(8, np.int32), np.array([2, 3, 4, 6, 8, 9, 9, 10], np.int32))
    coverage.add(build("span")(student, teacher), student, teacher)
    assert (coverage.one_to_one, coverage.one_to_many, coverage.many_to_one, coverage.many_to_many) == (2, 1, 0, 1)
    assert (coverage.student_aligned, coverage.teacher_aligned) == (5, 6)
    assert (coverage.bytes, coverage.bytes_aligned) == (11, 9)
    assert coverage.lines() == [
        "83.3% of the student's scored tokens and 75.0% of the teacher's are aligned, in 4 rows: "
        "50.0% 1-1, 25.0% 1-n, 25.0% n-m",
        "81.8% of the responses' bytes are in a row",
    ]
    bare = Side(np.zeros(2, np.int32))
    coverage.add(Alignment.of_groups([]), bare, bare)
    assert coverage.lines()[-1] == "1 of 2 examples have no aligned token"
    assert coverage.as_dict()["examples"] == 2
    coverage.add(Alignment.of_groups([([0, 1], [0])]), bare, bare)
    assert (coverage.many_to_one, coverage.rows, coverage.bytes) == (1, 5, 11)
    assert Coverage().lines() == [
        "none of the student's scored tokens and none of the teacher's are aligned, in 0 rows: "
    ]
