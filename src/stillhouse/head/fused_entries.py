"""Value and slope of one entry for each divergence, compiled: `TeacherDivergence.value_and_slope` without the sums.

A divergence is a named tuple of its parameters in fp32; numba compiles a kernel for each type of tuple.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload

from stillhouse.head.vector_math import EXACT, exp, log, minus

BINS = 1 << 15  # of either half of the 30 bits of a float from 0 to 1

_F = np.float32


class Plain(NamedTuple):
    """A divergence without parameters. Its type alone tells it from others, as numba compiles for types."""

    unused: Any = _F(0.0)


class ForwardKL(Plain):
    """KL(p||q), and the cross-entropy to TAID's target."""


class ReverseKL(Plain):
    """KL(q||p)."""


class TotalVariation(Plain):
    """Half the sum of |p - q|."""


class Mixture(NamedTuple):
    """m = first p + second q, and where log q - log p is cut: see `divergence.mixtures`."""

    first: Any
    second: Any
    bound: Any
    attached: Any = _F(1.0)


class JensenShannon(Mixture):
    """Generalised Jensen-Shannon."""


class SkewForwardKL(Mixture):
    """KL(p||m)."""


class SkewReverseKL(Mixture):
    """KL(q||m); `attached` is 0 where no gradient goes through m."""


class ToDi(NamedTuple):
    """ToDi."""

    scale: Any


class AdaptiveKL(NamedTuple):
    """Adaptive KL, not TAID's port."""

    mu: Any


class InterpolatedTarget(NamedTuple):
    """TAID."""

    t: Any


class Alone(Plain):
    """No divergence at all: only what the student alone tells."""


class Decoupled(NamedTuple):
    """DKD."""

    alpha: Any
    beta: Any


def _forward_kl(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    return -p * d, -p


def _reverse_kl(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    return q * d, q * d + q


def _total_variation(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    gap = minus(q, p)
    sign = _F(0.5) if gap > _F(0.0) else (_F(-0.5) if gap < _F(0.0) else _F(0.0))
    return gap * sign, q * sign


def _jensen_shannon(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    cut = min(max(d, -loss.bound), loss.bound)
    log_m = log(loss.first + loss.second * exp(cut))  # log(m / p)
    slope = (cut - log_m) * q * loss.second
    return slope - loss.first * p * log_m, slope


def _skew_forward_kl(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    grown = loss.second * exp(min(max(d, -loss.bound), loss.bound))
    m = loss.first + grown  # m / p
    return -p * log(m), -p * (grown / m)


def _skew_reverse_kl(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    cut = min(max(d, -loss.bound), loss.bound)
    grown = loss.second * exp(cut)
    m = loss.first + grown  # m / p
    value = (cut - log(m)) * q
    return value, value + q - loss.attached * (grown / m) * q


def _todi(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    upward = _F(1.0) / (_F(1.0) + exp(min(max(-loss.scale * d, _F(-80.0)), _F(80.0))))
    balance = minus(q, p) if loss.scale == _F(1.0) else (p + q) * upward - p
    return d * balance, balance + upward * q * d


def _adaptive_kl(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    reverse = _F(1.0) - weight
    return d * (reverse * q - weight * p), reverse * (q * d + q) - weight * p


_ENTRIES = {
    ForwardKL: _forward_kl,
    ReverseKL: _reverse_kl,
    TotalVariation: _total_variation,
    JensenShannon: _jensen_shannon,
    SkewForwardKL: _skew_forward_kl,
    SkewReverseKL: _skew_reverse_kl,
    ToDi: _todi,
    AdaptiveKL: _adaptive_kl,
    InterpolatedTarget: _forward_kl,
    Decoupled: _forward_kl,
}


def entry(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    """Value and slope of one entry; the work of `_ENTRIES`, by the type of `loss`."""
    raise NotImplementedError


@overload(entry, jit_options=EXACT)
def _choose_entry(loss: Any, weight: Any, q: Any, p: Any, d: Any) -> Any:
    return _ENTRIES[loss.instance_class]
