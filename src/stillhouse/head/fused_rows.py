"""The passes over one row that `fused_blocks` is made of, compiled.

Sums are taken in fp32 over pieces of a row and in fp64 over the pieces: one long fp32 sum loses what is small beside
it. Only the loops that add up may reassociate; what they call keeps its order of operations, as `exp` must.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from stillhouse.head.fused_entries import BINS, entry
from stillhouse.head.vector_math import EXACT, INFINITE, INNER, bits_of, exp, from_bits, minus, order, read, rounded

_ADDING: Any = {**INNER, "fastmath": {"contract", "nsz", "reassoc"}}
_IN_ORDER: Any = {**INNER, "fastmath": {"contract", "nsz"}}
_F = np.float32
_PIECE = 512


@njit(**_ADDING)
def _extremes(x: Any, scale: Any) -> Any:
    highest, lowest = np.int32(-0x80000000), np.int32(0x7FFFFFFF)
    for i in range(len(x)):
        key = order(read(x[i]) * scale)
        highest, lowest = max(highest, key), min(lowest, key)
    return highest, lowest


@njit(**INNER)
def peak(x: Any, scale: Any) -> Any:
    """`_order` of the highest logit, its first index, and `_order` of the lowest logit."""
    highest, lowest, at = np.int32(-0x80000000), np.int32(0x7FFFFFFF), 0
    for start in range(0, len(x), _PIECE):
        high, low = _extremes(x[start : start + _PIECE], scale)
        if high > highest:
            highest, at = high, start
        lowest = min(lowest, low)
    while at < len(x) and order(read(x[at]) * scale) != highest:
        at += 1
    return highest, at, lowest


@njit(**INNER, inline="always")
def finite(highest: Any, lowest: Any) -> Any:
    """Whether all is finite that lies between; `order` of both."""
    return highest < INFINITE and lowest > -INFINITE


@njit(**_ADDING)
def _exponentials_of(x: Any, scale: Any, top: Any, inverse: Any, out: Any) -> Any:
    total = _F(0.0)
    for i in range(len(x)):
        out[i] = exp((read(x[i]) * scale - top) * inverse)
        total += out[i]
    return total


@njit(**INNER)
def exponentials(x: Any, scale: Any, top: Any, inverse: Any, out: Any) -> Any:
    """exp((z - top) / T) into `out`, and their sum."""
    total = 0.0
    for start in range(0, len(x), _PIECE):
        end = min(start + _PIECE, len(x))
        total += _exponentials_of(x[start:end], scale, top, inverse, out[start:end])
    return total


@njit(**_ADDING)
def _squares_of(x: Any) -> Any:
    total = _F(0.0)
    for i in range(len(x)):
        total += x[i] * x[i]
    return total


@njit(**INNER)
def squares(x: Any) -> Any:
    """The sum of squares."""
    total = 0.0
    for start in range(0, len(x), _PIECE):
        total += _squares_of(x[start : start + _PIECE])
    return total


@njit(**_ADDING)
def _weighted_of(x: Any, scale: Any, top: Any) -> Any:
    total = _F(0.0)
    for i in range(len(x)):
        z = read(x[i]) * scale - top
        total += z * exp(z)
    return total


@njit(**INNER)
def entropy(x: Any, scale: Any, top: Any, total: Any) -> Any:
    """Of softmax(z), `total` being the sum of exp(z - top)."""
    weighted = 0.0
    for start in range(0, len(x), _PIECE):
        weighted += _weighted_of(x[start : start + _PIECE], scale, top)
    return math.log(total) - weighted / total


@njit(**INNER)
def lowest(x: Any) -> Any:
    """The least of `x`."""
    found = x[0]
    for i in range(len(x)):
        found = min(found, x[i])
    return found


@njit(**EXACT)
def mix(x: Any, x_scale: Any, y: Any, y_scale: Any, share: Any, out: Any) -> None:
    """`torch.lerp` of two sides' logits."""
    for i in range(len(out)):
        ours, theirs = read(x[i]) * x_scale, read(y[i]) * y_scale
        gap = theirs - ours
        out[i] = ours + share * gap if share < _F(0.5) else theirs - gap * (_F(1.0) - share)


@njit(**EXACT)
def _log_ratio(x: Any, y: Any, inverse: Any, high: Any, low: Any) -> Any:
    """(x - y) / T - (high + low): the offset is in two parts, as its rounding would be that of the whole row."""
    return (x - y) * inverse - high - low


@njit(**_ADDING)
def _compare_of(loss: Any, weight: Any, z: Any, y: Any, sides: Any, q: Any, p: Any) -> Any:
    scale, top, teacher_scale, teacher_top, share, inverse, high, low, q_factor, p_factor = sides
    value, total = _F(0.0), _F(0.0)
    for i in range(len(z)):
        theirs = (read(y[i]) * teacher_scale - teacher_top) * share
        d = _log_ratio(read(z[i]) * scale - top, theirs, inverse, high, low)
        part, slope = entry(loss, weight, q[i] * q_factor, p[i] * p_factor, d)
        value += part
        total += slope
        p[i] = slope
    return value, total


@njit(**INNER)
def compare(loss: Any, weight: Any, z: Any, y: Any, sides: Any, q: Any, p: Any) -> Any:
    """The value of a divergence and the sum of its slopes, which are written over `p`.

    Args:
        loss: of `fused_entries`.
        weight: what `entry` may want to know of the whole row.
        z: the student's logits as stored.
        y: the teacher's.
        sides: all fp32: scale and highest logit of z, the same of y, how much of y there is in the log-ratio (1, or 0
            for log q), 1 / T, the log-ratio of the sums in two parts, and what makes probabilities of q and of p.
        q: exp((z - highest) / T), fp32.
        p: the same of y.
    """
    value, total = 0.0, 0.0
    for start in range(0, len(z), _PIECE):
        end = min(start + _PIECE, len(z))
        part, slope = _compare_of(loss, weight, z[start:end], y[start:end], sides, q[start:end], p[start:end])
        value += part
        total += slope
    return value, total


@njit(**_IN_ORDER)
def combine(out: Any, a: Any, x: Any, b: Any, y: Any) -> None:
    """out = a x + b y, rounded as `out` is stored."""
    for i in range(len(out)):
        out[i] = rounded(out[i], a * x[i] + b * y[i])


@njit(**_IN_ORDER)
def combine_with_square(out: Any, a: Any, x: Any, b: Any, y: Any, c: Any) -> None:
    """out = a x + b y + c x x."""
    for i in range(len(out)):
        out[i] = rounded(out[i], a * x[i] + b * y[i] + c * (x[i] * x[i]))


@njit(**_IN_ORDER)
def combine_three(out: Any, a: Any, x: Any, b: Any, y: Any, c: Any, w: Any) -> None:
    """out = a x + b y + c w."""
    for i in range(len(out)):
        out[i] = rounded(out[i], a * x[i] + b * y[i] + c * w[i])


@njit(**_ADDING)
def _gaps_of(q: Any, p: Any, q_factor: Any, p_factor: Any, least: Any) -> Any:
    total, above = _F(0.0), _F(0.0)
    for i in range(len(q)):
        gap = abs(minus(q[i] * q_factor, p[i] * p_factor))
        total += gap
        above += gap if p[i] > least else _F(0.0)
    return total, above


@njit(**INNER)
def head_share(mu: Any, q: Any, p: Any, q_factor: Any, p_factor: Any, p_sum: Any, mass: Any, counts: Any) -> Any:
    """The share of sum |p - q| on the teacher's head, `AdaptiveKL`'s weight.

    The head's least probability is found without a sort: first its upper bits by the mass of all entries that share
    them, then its lower bits by the count of the entries that have both.
    """
    bound = mu * p_sum
    mass[:] = 0.0
    for i in range(len(p)):
        mass[bits_of(p[i]) >> 15] += p[i]
    below, upper = 0.0, 0
    while upper < BINS and below + mass[upper] <= bound:
        below += mass[upper]
        upper += 1
    least, kept = _F(np.inf), 0  # the head's least entry, and how many that equal it are in the head
    if upper < BINS and mu < 1.0:
        counts[:] = 0
        for i in range(len(p)):
            bits = bits_of(p[i])
            if bits >> 15 == upper:
                counts[bits & (BINS - 1)] += 1
        # This sum is in another order: should it not reach the bound, the head is the last entry that was counted.
        for lower in range(BINS):
            if counts[lower] > 0:
                least = from_bits(np.int32((upper << 15) | lower))
                count = np.float64(counts[lower])
                kept = max(np.int64(count - np.floor(min((bound - below) / least, count))), 1)
                if below + count * least > bound:
                    break
                below += count * least
    total, head = 0.0, 0.0
    for start in range(0, len(q), _PIECE):
        end = min(start + _PIECE, len(q))
        both, above = _gaps_of(q[start:end], p[start:end], q_factor, p_factor, least)
        total += both
        head += above
    at = len(p) - 1  # of equals the highest ids are in the head
    while kept > 0 and at >= 0:
        if p[at] == least:
            head += abs(minus(q[at] * q_factor, p[at] * p_factor))
            kept -= 1
        at -= 1
    return head / total if total > 1.2e-38 else 0.5
