from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.alignment import (
    DTW,
    EditDistances,
    EntropyDTW,
    Side,
    edit_path,
    entropy_weights,
    one_to_one,
    warp,
)
from stillhouse.alignment.dtw import grouped

Path = list[tuple[int, int]]
TEACHER, STUDENT = ["Hel", "lo", " wor", "ld", "!", "</s>"], ["Hello", " wo", "rld", "!", "<|endoftext|>"]


def slow_warp(costs: np.ndarray) -> Path:
    """FuseLLM's: the whole matrix, then back over its values."""
    n, m = costs.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    for i in range(n):
        for j in range(m):
            total[i + 1, j + 1] = costs[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    total[0, 0] = np.inf
    path, i, j = [(n - 1, m - 1)], n - 1, m - 1
    while (i, j) != (0, 0):
        choice = int(np.argmin([total[i, j], total[i, j + 1], total[i + 1, j]]))
        i, j = i - (choice != 2), j - (choice != 1)
        path.append((i, j))
    return path[::-1]


def slow_groups(path: Path, student: np.ndarray, teacher: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CDM's merged rows (section "from path to aligned groups"): means of means over distinct lists."""
    to_student = [sorted({j for i, j in path if i == row}) for row in range(len(teacher))]
    to_teacher = [sorted({i for i, j in path if j == column}) for column in range(len(student))]
    moved = np.array([teacher[rows].mean(0) for rows in to_teacher])
    groups = [group for k, group in enumerate(to_student) if group not in to_student[:k]]
    return np.array([student[g].mean(0) for g in groups]), np.array([moved[g].mean(0) for g in groups])


def merged(bounds: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.array([values[index[a:b]].mean(0) for a, b in pairwise(bounds)])


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    n, m, most = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.sampled_from([0, 1, 3, 60_000]))
    return np.array(draw(st.lists(st.integers(0, most), min_size=n * m, max_size=n * m)), np.uint16).reshape(n, m)


@settings(max_examples=1000)
@given(matrices(), st.integers(0, 2**32 - 1))
def test_path_and_groups_against_the_slow_twins(costs: np.ndarray, seed: int):
    random = np.random.default_rng(seed)
    rows, columns = (random.integers(3, 6, size) for size in costs.shape)
    for path, slow in (
        (warp(costs), slow_warp(costs)),
        (warp(costs, rows, columns), slow_warp(np.outer(rows, columns) * costs.astype(np.int64))),
    ):
        assert [tuple(step) for step in path.tolist()] == slow
        teacher, student = random.normal(size=(costs.shape[0], 2)), random.normal(size=(costs.shape[1], 2))
        ours = grouped(path)
        of_student, of_teacher = slow_groups(slow, student, teacher)
        np.testing.assert_allclose(merged(ours.student_bounds, ours.student_index, student), of_student, rtol=1e-12)
        np.testing.assert_allclose(merged(ours.teacher_bounds, ours.teacher_index, teacher), of_teacher, rtol=1e-12)
        assert sorted(ours.student_index) == list(range(costs.shape[1]))
        assert sorted(ours.teacher_index) == list(range(costs.shape[0]))


def test_ties_go_diagonal_then_up_then_left():
    assert warp(np.zeros((2, 3), np.uint8)).tolist() == [[0, 0], [0, 1], [1, 2]]
    assert warp(np.zeros((3, 2), np.uint8)).tolist() == [[0, 0], [1, 0], [2, 1]]
    tie = np.array([[0, 9, 9], [9, 5, 1], [9, 1, 0]], np.uint8)
    tie[1, 1] = 5
    assert warp(tie).tolist() == [[0, 0], [1, 1], [2, 2]]
    up_or_left = np.array([[0, 0, 9], [0, 9, 1], [9, 1, 0]], np.uint8)
    assert [tuple(step) for step in warp(up_or_left).tolist()] == slow_warp(up_or_left)
    assert warp(up_or_left).tolist()[-2] == [1, 2]


def test_nothing_on_a_side_has_no_path():
    assert warp(np.zeros((0, 3), np.uint8)).shape == (0, 2)
    assert len(grouped(warp(np.zeros((0, 3), np.uint8)))) == 0


# CDM's vectors


def test_weights_are_3_4_or_5():
    assert entropy_weights(np.array([0, 0.5, 1, 1.5, 2, 2.5, 3])).tolist() == [3, 3, 4, 4, 4, 5, 5]
    assert entropy_weights(np.array([1.7])).tolist() == [3]
    assert entropy_weights(np.full(4, 0.3, np.float32)).tolist() == [3, 3, 3, 3]
    assert entropy_weights(np.zeros(0)).tolist() == []
    borders = np.array([0, 0.32671, 0.32672, 0.67328, 0.67329, 1])
    assert entropy_weights(borders).tolist() == [3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("ends", ["official", ([4], [5])])
def test_the_hello_world_of_cdm(ends: object):
    tables = [[token.replace(" ", "") for token in side] for side in (STUDENT, TEACHER)]
    distances = EditDistances(tables[0], tables[1], ends)  # type: ignore[arg-type]
    student, teacher = (Side(np.arange(len(side), dtype=np.int32)) for side in (STUDENT, TEACHER))
    rows, columns = np.array([3, 4, 5, 3, 4, 5]), np.array([4, 3, 5, 3, 4])
    costs = np.outer(rows, columns) * distances(student.inputs, teacher.inputs).astype(np.int64)
    assert costs[[0, 1, 5]].tolist() == [[24, 27, 45, 27, 144], [48, 12, 40, 24, 192], [100, 60, 100, 60, 0]]
    path = warp(distances(student.inputs, teacher.inputs), rows, columns).tolist()
    assert path == [[0, 0], [1, 1], [2, 1], [3, 2], [4, 3], [5, 4]]
    assert sum(costs[i, j] for i, j in path) == 66
    alignment = EntropyDTW(distances)(student, teacher, columns.astype(np.int32), rows.astype(np.int32))
    assert merged(alignment.teacher_bounds, alignment.teacher_index, np.arange(6.0)).tolist() == [0, 1.5, 3, 4, 5]
    assert merged(alignment.student_bounds, alignment.student_index, 10 * np.arange(5.0)).tolist() == [
        0,
        10,
        20,
        30,
        40,
    ]


def test_dtw_may_pair_tokens_that_share_no_place():
    teacher, student = ["ab", "cd", "ef", "</s>"], ["a", "bc", "def", "</s>"]
    distances = EditDistances(student, teacher)
    both = Side(np.arange(4, dtype=np.int32))
    assert DTW(distances).path(both, both).tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert DTW(distances)(both, both).groups() == [([at], [at]) for at in range(4)]


# MinED and MCW-KD


def test_mined_keeps_single_pairs_of_matching_tokens():
    path = np.array([[0, 0], [1, 1], [2, 1], [3, 2], [3, 3], [4, 4]], np.int32)
    student, teacher = np.array([10, 11, 13, 99, 14], np.int32), np.array([0, 1, 2, 3, 4], np.int32)
    # 1 meets two teacher tokens; 3 meets one whose token is another; the teacher's 4 stands for nothing
    assert one_to_one(path, student, teacher, np.array([10, 12, 11, 13, -1])).tolist() == [0, -1, 3, -1, -1]
    assert one_to_one(np.zeros((0, 2), np.int32), student, teacher[:0], np.zeros(5)).tolist() == [-1] * 5


def test_edit_paths_carry_their_distances():
    steps = edit_path(["Ġthe", "Ġcat"], ["Ġthe", "Ġc", "at"])
    assert steps.tolist() == [[0, 0, 0], [1, 1, 2], [1, 2, 2]]
