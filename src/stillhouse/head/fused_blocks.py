"""The compiled kernels of `fused`, one for a block of rows of each kind of loss.

A row is read four times, in vector instructions and with its temporaries in the second-level cache:

    A  highest and lowest logit of each side     as integers that order as the floats do, so that a NaN shows as well
    B  exp((z - highest) / T) and their sum      q and p, but for a factor
    C  value and slope of each entry
    D  gradient                                  a combination of the rows of B and C, written over the student's logits

A row function gives False, and leaves the row as it was, where a logit is not finite or the closed form cannot tell.
Only the kernels of blocks are cached on disk, with all that they call.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload

from stillhouse.head.fused_entries import AdaptiveKL, Alone, Decoupled, InterpolatedTarget
from stillhouse.head.fused_rows import (
    combine,
    combine_three,
    combine_with_square,
    compare,
    entropy,
    exponentials,
    finite,
    head_share,
    lowest,
    mix,
    peak,
    squares,
)
from stillhouse.head.vector_math import INNER, order, read, rounded

KD, CE, ACCURACY, AGREEMENT, ENTROPY, _LIKELIEST, COLUMNS = range(7)  # columns of the values of a block
NOT_ASKED, AS_IS, SQUARED, APART = range(4)  # how exp(z) follows from exp(z / T): T is 1, 2, or another

_F = np.float32
_ONE = _F(1.0)


class Task(NamedTuple):
    """What is asked of every row: numbers only, of fixed types."""

    temperature: float
    inverse: Any  # 1 / temperature, fp32
    at_one: int  # NOT_ASKED, AS_IS, SQUARED or APART
    scale: Any  # of the student's logits, fp32
    teacher_scale: Any
    kd_weight: float
    ce_weight: float
    wants_gradient: bool
    wants_agreement: bool
    wants_entropy: bool


class Room(NamedTuple):
    """Scratch of one thread."""

    student: Any  # [V] exp((z - highest) / T)
    teacher: Any  # [V] the same of the teacher, later the slope
    one: Any  # [V] exp(z - highest) where T is neither 1 nor 2
    mixed: Any  # [V] the logits of TAID's target
    mass: Any  # [BINS] fp64
    counts: Any  # [BINS]


def _weight(loss: Any, room: Any, q_sum: Any, p_sum: Any) -> Any:
    """What `entry` may want to know of the whole row."""
    raise NotImplementedError


@overload(_weight, jit_options=INNER)
def _choose_weight(loss: Any, room: Any, q_sum: Any, p_sum: Any) -> Any:
    def adaptive(loss: Any, room: Any, q_sum: Any, p_sum: Any) -> Any:
        # With no mass for the tail it matters whether a probability is 0 or only very small: `exp` cannot tell.
        if loss.mu < 1e-30 and lowest(room.teacher) == 0.0:
            return -1.0
        factors = _F(1.0 / q_sum), _F(1.0 / p_sum)
        return head_share(loss.mu, room.student, room.teacher, factors[0], factors[1], p_sum, room.mass, room.counts)

    def nothing(loss: Any, room: Any, q_sum: Any, p_sum: Any) -> Any:
        return 0.0

    return adaptive if loss.instance_class is AdaptiveKL else nothing


@njit(**INNER)
def _sum_at_one(z: Any, task: Any, top: Any, q_sum: Any, room: Any) -> Any:
    """The sum of exp(z - top), of which the entries are in `room` or follow from what is there."""
    if task.at_one == SQUARED:
        return squares(room.student)
    if task.at_one == APART:
        return exponentials(z, task.scale, top, _ONE, room.one)
    return q_sum


@njit(**INNER)
def _at_one(task: Any, room: Any, at: Any) -> Any:
    """exp(z - top) of one entry."""
    if task.at_one == SQUARED:
        return room.student[at] * room.student[at]
    return room.one[at] if task.at_one == APART else room.student[at]


@njit(**INNER)
def _write(z: Any, task: Any, room: Any, student: Any, slope: Any, one: Any, label: Any, at_label: Any) -> None:
    """The gradient: these three times the rows in `room`, and at the label what is given."""
    if task.at_one == SQUARED and one != 0.0:
        combine_with_square(z, _F(student), room.student, _F(slope), room.teacher, _F(one))
    elif task.at_one == APART and one != 0.0:
        combine_three(z, _F(student), room.student, _F(slope), room.teacher, _F(one), room.one)
    else:
        combine(z, _F(student + one), room.student, _F(slope), room.teacher)
    z[label] = rounded(z[label], _F(at_label))


@njit(**INNER, inline="always")
def _compared(loss: Any, share: Any, z: Any, y: Any, y_scale: Any, label: Any, task: Any, room: Any, out: Any) -> Any:
    """Values of one row into `out`, and its gradient over `z`; `share` as in `compare`."""
    q_high, q_at, q_low = peak(z, task.scale)
    p_high, p_at, p_low = peak(y, y_scale)
    if not (finite(q_high, q_low) and finite(p_high, p_low)):
        return False
    q_top, p_top = read(z[q_at]) * task.scale, read(y[p_at]) * y_scale
    q_sum = exponentials(z, task.scale, q_top, task.inverse, room.student)
    p_sum = exponentials(y, y_scale, p_top, task.inverse, room.teacher)
    weight = _weight(loss, room, q_sum, p_sum)
    if weight < 0.0:
        return False
    one_sum = _sum_at_one(z, task, q_top, q_sum, room)
    offset = math.log(q_sum) - (math.log(p_sum) if share > 0 else 0.0)
    high = _F(offset)
    sides = (
        task.scale, q_top, y_scale, p_top, share, task.inverse,
        high, _F(offset - high), _F(1.0 / q_sum), _F(1.0 / p_sum),
    )  # fmt: skip
    own = read(z[label]) * task.scale
    value, total = compare(loss, _F(weight), z, y, sides, room.student, room.teacher)
    out[KD] = value
    out[CE] = math.log(one_sum) - (np.float64(own) - q_top)
    out[ACCURACY] = q_at == label
    out[AGREEMENT] = q_at == p_at
    out[_LIKELIEST] = q_at
    if task.wants_entropy:
        out[ENTROPY] = entropy(z, task.scale, q_top, one_sum)
    if task.wants_gradient:
        slope = task.kd_weight * task.scale / task.temperature
        one = task.ce_weight * task.scale / one_sum
        student = -slope * total / q_sum
        at_label = student * room.student[label] + slope * room.teacher[label] - task.ce_weight * task.scale
        _write(z, task, room, student, slope, one, label, at_label + one * _at_one(task, room, label))
    return True


def _against_teacher(loss: Any, z: Any, y: Any, label: Any, task: Any, room: Any, out: Any) -> Any:
    return _compared(loss, _ONE, z, y, task.teacher_scale, label, task, room, out)


def _alone(loss: Any, z: Any, y: Any, label: Any, task: Any, room: Any, out: Any) -> Any:
    """`_compared` without a divergence from the teacher: all is at T = 1."""
    q_high, q_at, q_low = peak(z, task.scale)
    if not finite(q_high, q_low):
        return False
    if task.wants_agreement:
        p_high, p_at, p_low = peak(y, task.teacher_scale)
        if not finite(p_high, p_low):
            return False
        out[AGREEMENT] = q_at == p_at
    top = read(z[q_at]) * task.scale
    total = exponentials(z, task.scale, top, _ONE, room.student)
    out[CE] = math.log(total) - (np.float64(read(z[label]) * task.scale) - top)
    out[ACCURACY] = q_at == label
    if task.wants_entropy:
        out[ENTROPY] = entropy(z, task.scale, top, total)
    if task.wants_gradient:
        one = task.ce_weight * task.scale / total
        combine(z, _F(one), room.student, _F(0.0), room.student)
        z[label] = rounded(z[label], _F(one * room.student[label] - task.ce_weight * task.scale))
    return True


def _interpolated(loss: Any, z: Any, y: Any, label: Any, task: Any, room: Any, out: Any) -> Any:
    """TAID: `_compared`, with the target for a teacher and log q for the log-ratio."""
    high, at, low = peak(y, task.teacher_scale)
    if not finite(high, low):
        return False
    mix(z, task.scale, y, task.teacher_scale, loss.t, room.mixed)
    fine = _compared(loss, _F(0.0), z, room.mixed, _ONE, label, task, room, out)
    out[AGREEMENT] = out[_LIKELIEST] == at
    return fine


@njit(**INNER)
def _peak_of_rest(x: Any, scale: Any, label: Any) -> Any:
    """`peak` of all but the label, and that of all."""
    before, at, low = peak(x[:label], scale)
    after, at_after, low_after = peak(x[label + 1 :], scale)
    own = order(read(x[label]) * scale)
    if after > before:
        before, at = after, label + 1 + at_after
    first = label if own > before or (own == before and label < at) else at
    return at, first, finite(max(before, own), min(low, low_after, own))


@njit(**INNER)
def _exponentials_of_rest(x: Any, scale: Any, top: Any, inverse: Any, label: Any, out: Any) -> Any:
    total = exponentials(x[:label], scale, top, inverse, out[:label])
    out[label] = _F(0.0)
    return total + exponentials(x[label + 1 :], scale, top, inverse, out[label + 1 :])


@njit(**INNER)
def _log_sigmoid(x: Any) -> Any:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


@njit(**INNER)
def _label_against_rest(q_lead: Any, p_lead: Any) -> Any:
    """KL(b_p||b_q) and its derivative by `q_lead`."""
    value, slope = 0.0, 0.0
    for sign in (1.0, -1.0):
        log_q, log_p = _log_sigmoid(sign * q_lead), _log_sigmoid(sign * p_lead)
        value += math.exp(log_p) * (log_p - log_q)
        slope -= sign * math.exp(log_p + _log_sigmoid(-sign * q_lead))
    return value, slope


def _decoupled(loss: Any, z: Any, y: Any, label: Any, task: Any, room: Any, out: Any) -> Any:
    """DKD: sums are those of the rest, whose entries at the label are 0."""
    if len(z) == 1:
        return False
    q_at, likeliest, q_fine = _peak_of_rest(z, task.scale, label)
    p_at, teacher_likeliest, p_fine = _peak_of_rest(y, task.teacher_scale, label)
    if not (q_fine and p_fine):
        return False
    q_top, p_top = read(z[q_at]) * task.scale, read(y[p_at]) * task.teacher_scale
    own, teacher_own = np.float64(read(z[label]) * task.scale), np.float64(read(y[label]) * task.teacher_scale)
    q_sum = _exponentials_of_rest(z, task.scale, q_top, task.inverse, label, room.student)
    p_sum = _exponentials_of_rest(y, task.teacher_scale, p_top, task.inverse, label, room.teacher)
    one_sum = q_sum
    if task.at_one == SQUARED:
        one_sum = squares(room.student)
    elif task.at_one == APART:
        one_sum = _exponentials_of_rest(z, task.scale, q_top, _ONE, label, room.one)
    top = max(own, q_top)
    fade = math.exp(q_top - top)
    whole = one_sum * fade + math.exp(own - top)  # the sum of exp(z - top) with the label
    offset = math.log(q_sum) - math.log(p_sum)
    sides = (
        task.scale, q_top, task.teacher_scale, p_top, _ONE, task.inverse,
        _F(offset), _F(offset - _F(offset)), _F(1.0 / q_sum), _F(1.0 / p_sum),
    )  # fmt: skip
    among = compare(loss, _F(0.0), z, y, sides, room.student, room.teacher)[0]
    against, label_slope = _label_against_rest(
        (own - q_top) / task.temperature - math.log(q_sum), (teacher_own - p_top) / task.temperature - math.log(p_sum)
    )
    out[KD] = (loss.alpha * against + loss.beta * among) * task.temperature**2
    out[CE] = math.log(whole) - (own - top)
    out[ACCURACY] = likeliest == label
    out[AGREEMENT] = likeliest == teacher_likeliest
    if task.wants_entropy:
        out[ENTROPY] = entropy(z, task.scale, _F(top), whole)
    if task.wants_gradient:
        factor = task.kd_weight * task.scale * task.temperature
        student = factor * (loss.beta - loss.alpha * label_slope) / q_sum
        own_ce = task.ce_weight * task.scale * (math.exp(own - top) / whole - 1.0)
        at_label = factor * loss.alpha * label_slope + own_ce
        one = task.ce_weight * task.scale * fade / whole
        _write(z, task, room, student, factor * loss.beta, one, label, at_label)
    return True


def _any_row(loss: Any, z: Any, y: Any, label: Any, task: Any, room: Any, out: Any) -> Any:
    """A row, by the type of `loss`."""
    raise NotImplementedError


@overload(_any_row, jit_options=INNER)
def _choose_row(loss: Any, z: Any, y: Any, label: Any, task: Any, room: Any, out: Any) -> Any:
    special: dict[Any, Any] = {Alone: _alone, InterpolatedTarget: _interpolated, Decoupled: _decoupled}
    return special.get(loss.instance_class, _against_teacher)


def _made(stamp: int) -> Any:
    """The kernel of a block.

    Args:
        stamp: goes into the key of numba's cache on disk, which looks at the time of this file alone.
    """

    def block(loss: Any, z: Any, y: Any, labels: Any, task: Any, room: Any, values: Any, done: Any) -> Any:
        for row in range(len(z)):
            done[row] = _any_row(loss, z[row], y[row], labels[row], task, room, values[row])
        return stamp

    try:
        return njit(error_model="numpy", nogil=True, cache=True)(block)
    except RuntimeError:  # no place to keep a cache: neither this folder nor the user's own may be written
        return njit(error_model="numpy", nogil=True)(block)


def _stamp() -> int:
    here = Path(__file__).parent
    parts = [here / name for name in ("fused_entries.py", "fused_rows.py", "vector_math.py")]
    content = b"".join(part.read_bytes() for part in parts if part.exists())
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big")


block = _made(_stamp())
