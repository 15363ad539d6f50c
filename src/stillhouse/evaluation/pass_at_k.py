"""The probability that one of k samples passes, estimated without bias from n >= k of them."""

from __future__ import annotations

from math import prod


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for n `samples`, c of which `passed` (Chen et al. 2021, equation 1).

    Raises:
        ValueError: k is not from 1 to n, or c not from 0 to n.
    """
    if not (1 <= k <= samples and 0 <= passed <= samples):
        raise ValueError(f"pass@{k} of {samples} samples, {passed} passed")
    if samples - passed < k:
        return 1.0
    return 1.0 - prod(1.0 - k / rest for rest in range(samples - passed + 1, samples + 1))
