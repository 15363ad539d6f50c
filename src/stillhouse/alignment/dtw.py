"""Dynamic time warping (DTW) between two sequences of tokens, as MinED, MCW-KD and CDM do it.

Rows are teacher tokens i, columns student tokens j, c[i, j] what it costs to stand them side by side:

    D[i, j] = c[i, j] + min(D[i - 1, j - 1], D[i - 1, j], D[i, j - 1])      beyond the border: infinite

The path goes back from the last pair to (0, 0), each time to the least of the three in that order, so that on a tie the
diagonal comes before up (i - 1) and up before left (j - 1). Costs are integers and sums of them exact.

That order has a consequence. A path never turns a corner: after steps to the left the next is diagonal, and so after
steps up (at a corner, D of the diagonal is at most D of the step before it, and the diagonal comes first). So of a row
that meets several columns each column meets that row alone, and the other way round: every group is 1-1, 1-n or n-1,
and the mean of means that CDM takes over a group is the plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stillhouse.alignment.alignment import Alignment, Ids, Side
from stillhouse.alignment.edit_distance import EditDistances

# From a pair to the one before it on the path.
DIAGONAL, UP, LEFT = 0, 1, 2


def warp(costs: NDArray[Any], rows: NDArray[Any] | None = None, columns: NDArray[Any] | None = None) -> Ids:
    """The path of pairs (teacher row, student column), first to last: int32 [k, 2].

    Args:
        costs: [n_t, n_s] integers from 0.
        rows, columns: Integer weights [n_t] and [n_s]; a cost counts times both. 1 if not given.
    """
    n, m = costs.shape
    if not n or not m:
        return np.zeros((0, 2), np.int32)
    weights = [
        np.ones(size, np.int64) if given is None else given.astype(np.int64)
        for given, size in ((rows, n), (columns, m))
    ]
    return _warp(np.ascontiguousarray(costs), *weights)


def edit_path(student: Sequence[str], teacher: Sequence[str]) -> Ids:
    """MCW-KD's path between two lists of token strings: (student, teacher, edit distance) int32 [k, 3], first to last.

    Here rows are student tokens, as its student-to-teacher direction has them; swap the arguments for the other one,
    which breaks ties otherwise.
    """
    words = sorted({*student, *teacher})
    ids = {word: index for index, word in enumerate(words)}
    rows, columns = (np.array([ids[word] for word in side], np.int32) for side in (student, teacher))
    distances = EditDistances(words, words)(columns, rows)
    path = warp(distances)
    return np.column_stack([path, distances[path[:, 0], path[:, 1]].astype(np.int32)])


def entropy_weights(entropy: NDArray[Any]) -> Ids:
    """CDM's weights 3, 4 or 5 from the entropies of one side of one example [n]: the more uncertain, the higher.

    u is the entropy's place between the least and the greatest; the weight is ⌊3 σ(4u - 2) + 3⌋, and 3 where all
    entropies are equal (arXiv 2502.11104).
    """
    if not len(entropy):
        return np.zeros(0, np.int32)
    exact = entropy.astype(np.float64)
    width = exact.max() - exact.min()
    place = (exact - exact.min()) / width if width > 0 else np.zeros_like(exact)
    return np.floor(3 / (1 + np.exp(2 - 4 * place)) + 3).astype(np.int32)


def grouped(path: Ids) -> Alignment:
    """The groups of a path: one teacher token with the student tokens it meets, or the other way round."""
    return Alignment(*_grouped(path))


def one_to_one(path: Ids, student: Ids, teacher: Ids, teacher_to_student: NDArray[Any]) -> Ids:
    """MinED's pairs: the teacher position that each student position is aligned with, or -1: int32 [n_s].

    A student position counts if the path pairs it with exactly one teacher position and its token is the one that the
    teacher's token stands for.

    Args:
        path: [k, 2], as `warp` gives it.
        student, teacher: ids [n_s], [n_t] of the input tokens.
        teacher_to_student: [V_t], the student token of each teacher token; negative for none.
    """
    met = np.bincount(path[:, 1], minlength=len(student))  # [n_s]
    found = np.full(len(student), -1, np.int32)
    found[path[:, 1]] = path[:, 0]
    same = (
        teacher_to_student[teacher[np.maximum(found, 0)]] == student if len(teacher) else np.zeros(len(student), bool)
    )
    return np.where((met == 1) & same, found, -1).astype(np.int32)


class DTW:
    """Aligns by edit distances between the input tokens of scored positions; see this module's head.

    Args:
        distances: Between the tokens of the two vocabularies.
    """

    def __init__(self, distances: EditDistances) -> None:
        self.distances = distances

    def path(self, student: Side, teacher: Side) -> Ids:
        """(teacher position, student position), first to last: int32 [k, 2]."""
        return warp(self.distances(student.inputs, teacher.inputs))

    def __call__(self, student: Side, teacher: Side) -> Alignment:
        """Every position of both sides is in a group."""
        return grouped(self.path(student, teacher))


class MatchedDTW:
    """Of DTW the pairs of one token with one that a map of tokens sends to it, as MinED takes them; see `one_to_one`.

    Args:
        distances: Between the tokens of the two vocabularies.
        teacher_to_student: [V_t], the student token of each teacher token; negative for none.
    """

    def __init__(self, distances: EditDistances, teacher_to_student: NDArray[Any]) -> None:
        self.warped, self.teacher_to_student = DTW(distances), teacher_to_student

    def __call__(self, student: Side, teacher: Side) -> Alignment:
        """Only what matches is in a group."""
        found = one_to_one(self.warped.path(student, teacher), student.inputs, teacher.inputs, self.teacher_to_student)
        at = np.flatnonzero(found >= 0)
        return Alignment.one_to_one(at, found[at])


class EntropyDTW:
    """CDM's alignment: edit distances times the weights of both tokens, which depend on what the models predict.

    The distances can be taken beforehand, wherever data is prepared; the weights cannot.

    Args:
        distances: Between the tokens of the two vocabularies.
    """

    def __init__(self, distances: EditDistances) -> None:
        self.distances = distances

    def __call__(self, student: Side, teacher: Side, student_weights: Ids, teacher_weights: Ids) -> Alignment:
        """Every position of both sides is in a group.

        Args:
            student: n_s positions.
            teacher: n_t positions.
            student_weights: [n_s], of `entropy_weights`.
            teacher_weights: [n_t]
        """
        return grouped(warp(self.distances(student.inputs, teacher.inputs), teacher_weights, student_weights))


@njit(cache=True, nogil=True)
def _warp(costs: Any, rows: Any, columns: Any) -> Any:
    n, m = costs.shape
    moves = np.empty((n, m), np.uint8)
    far = np.int64(1) << np.int64(62)
    above = np.full(m + 1, far, np.int64)  # above[j + 1] is D[i - 1, j]; above[0] is beyond the border
    here = np.full(m + 1, far, np.int64)
    above[0] = 0  # what comes before the first pair, on its diagonal
    for i in range(n):
        for j in range(m):
            best, move = above[j], DIAGONAL
            if above[j + 1] < best:
                best, move = above[j + 1], UP
            if here[j] < best:
                best, move = here[j], LEFT
            here[j + 1] = best + rows[i] * columns[j] * np.int64(costs[i, j])
            moves[i, j] = move
        above[0] = far
        above, here = here, above
        here[0] = far
    path = np.empty((n + m - 1, 2), np.int32)
    i, j, k = n - 1, m - 1, n + m - 1
    while True:
        k -= 1
        path[k, 0], path[k, 1] = i, j
        if i == 0 and j == 0:
            break
        move = moves[i, j]
        i, j = i - (move != LEFT), j - (move != UP)
    return path[k:].copy()


@njit(cache=True, nogil=True)
def _grouped(path: Any) -> Any:
    """The four arrays of an `Alignment`: a diagonal step begins a group, any other adds a position to one side."""
    most = len(path)
    student_index, teacher_index = np.empty(most, np.int32), np.empty(most, np.int32)
    student_bounds, teacher_bounds = np.zeros(most + 1, np.int32), np.zeros(most + 1, np.int32)
    m, s, t = 0, 0, 0
    for k in range(most):
        i, j = path[k, 0], path[k, 1]
        new_row = k == 0 or i != path[k - 1, 0]
        new_column = k == 0 or j != path[k - 1, 1]
        m += new_row and new_column
        if new_row:
            teacher_index[t] = i
            t += 1
        if new_column:
            student_index[s] = j
            s += 1
        student_bounds[m], teacher_bounds[m] = s, t
    return student_index[:s], student_bounds[: m + 1], teacher_index[:t], teacher_bounds[: m + 1]
