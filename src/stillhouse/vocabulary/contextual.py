"""CDM's contextual map: which of a row's likely target tokens stands for each of its likely source tokens.

Letters: M rows, K likeliest tokens of either side in each; u a source token, v a target token; |u| its string's length.

    d(u, v) = Levenshtein(u, v) / (|u| + |v|)      0 for two ends of text; a pair may match where d < threshold

A source token that the static map knows goes where that says. Any other goes to the nearest of the row's target tokens
that the map sends nothing to, the likelier one of equals; so the same token may go elsewhere in another context. (Chen
et al., CDM, arXiv:2502.11104)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_NO_FUZZY = 1e-4  # at this threshold and below the map alone counts


class Strings(NamedTuple):
    """Strings as the kernel takes them: code points end to end, where each begins, whether it is a number."""

    codes: NDArray[np.int32]  # [characters]
    starts: NDArray[np.int64]  # [V + 1]
    numeric: NDArray[np.bool_]  # [V]


@dataclass(frozen=True)
class ContextualMap:
    """A direction of CDM's dynamic map, from source to target tokens.

    Attributes:
        source: [V_source], what distances are taken between.
        target: [V_target]
        static: [V_source] the target token of each source token, -1 for none.
        taken: [V_target] which target tokens are no candidates.
        threshold: a pair matches below it.
        free: pairs of [V_source] and [V_target] masks of tokens that are 0 apart.
        zero_is_none: whether target token 0 matches nothing, though it keeps others from matching, as in the released
            code, which has no other word for "none".
    """

    source: Strings
    target: Strings
    static: NDArray[np.int64]
    taken: NDArray[np.bool_]
    threshold: float
    free: tuple[tuple[NDArray[np.bool_], NDArray[np.bool_]], ...] = ()
    zero_is_none: bool = False

    @classmethod
    def of(
        cls,
        source: Sequence[str],
        target: Sequence[str],
        static: NDArray[np.integer],
        threshold: float,
        *,
        ends: tuple[Collection[int], Collection[int]] = ((), ()),
        protect_digits: bool = True,
    ) -> ContextualMap:
        """The clean form: candidates are the target tokens that the static map sends nothing to.

        Args:
            ends: Tokens that end a text or a turn, of the source and of the target.
            protect_digits: whether a number matches its equal alone.
        """
        taken = np.zeros(len(target), dtype=bool)
        taken[static[static >= 0]] = True
        masks = tuple(
            np.isin(np.arange(len(side)), list(ids)) for side, ids in zip((source, target), ends, strict=True)
        )
        return cls(
            laid_out(source, protect_digits),
            laid_out(target, protect_digits),
            np.asarray(static, dtype=np.int64),
            taken,
            threshold,
            ((masks[0], masks[1]),),
        )

    def __call__(
        self, sources: NDArray[np.integer], targets: NDArray[np.integer], rows_of: Sequence[int] | None = None
    ) -> NDArray[np.int64]:
        """The target token of every source token of every row, -1 for none: [M, K].

        Args:
            sources: [M, K], the likeliest source tokens of each row, the likeliest first.
            targets: [M, K'], its likeliest target tokens.
            rows_of: how many rows each example has, where a match of one row holds in all rows of its example (the
                last one of several); None: it holds in its own row.
        """
        found = np.ascontiguousarray(self.static[sources])  # [M, K]
        if self.threshold > _NO_FUZZY:
            free = [np.stack([pair[side] for pair in self.free]) for side in (0, 1)] if self.free else _no_ends(self)
            match: Any = _match
            match(
                np.ascontiguousarray(sources, dtype=np.int64), np.ascontiguousarray(targets, dtype=np.int64),
                self.taken, *self.source, *self.target, *free, self.threshold, found,
            )  # fmt: skip
        if self.zero_is_none:
            found[found == 0] = -1
        if rows_of is not None:
            self._spread(sources, found, rows_of)
        return found

    def _spread(self, sources: NDArray[np.integer], found: NDArray[np.int64], rows_of: Sequence[int]) -> None:
        """The last match of each token in an example, in all its rows."""
        start = 0
        for count in rows_of:
            ids, matches = sources[start : start + count], found[start : start + count]
            hit = (matches >= 0) & (self.static[ids] < 0)
            last = dict(zip(ids[hit].tolist(), matches[hit].tolist(), strict=True))  # later ones overwrite
            if last:
                keys = np.array(sorted(last), dtype=np.int64)
                values = np.array([last[key] for key in keys.tolist()], dtype=np.int64)
                at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
                known = (keys[at] == ids) & (self.static[ids] < 0)
                matches[known] = values[at[known]]
            start += count


def laid_out(texts: Sequence[str], numbers: bool) -> Strings:
    """The strings of a vocabulary; `numbers`: look for those that are numbers."""
    starts = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=starts[1:])
    codes = np.array([ord(character) for text in texts for character in text], dtype=np.int32)
    return Strings(codes, starts, np.array([numbers and text.isnumeric() for text in texts], dtype=bool))


def _no_ends(maps: ContextualMap) -> list[NDArray[np.bool_]]:
    return [np.zeros((1, len(side.numeric)), dtype=bool) for side in (maps.source, maps.target)]


@njit(cache=True, nogil=True, error_model="numpy")
def _match(
    sources: Any, targets: Any, taken: Any, u_codes: Any, u_starts: Any, u_numeric: Any, v_codes: Any, v_starts: Any,
    v_numeric: Any, u_free: Any, v_free: Any, threshold: Any, found: Any,
) -> None:  # fmt: skip
    room = np.empty(4_096, dtype=np.int64)
    for row in range(len(sources)):
        for k in range(sources.shape[1]):
            if found[row, k] >= 0:
                continue
            u = sources[row, k]
            a = u_codes[u_starts[u] : u_starts[u + 1]]
            best = threshold
            for v in targets[row]:
                if taken[v]:
                    continue
                b = v_codes[v_starts[v] : v_starts[v + 1]]
                apart = 1.0
                for rule in range(len(u_free)):
                    if u_free[rule, u] and v_free[rule, v]:
                        apart = 0.0
                both = len(a) + len(b)
                if both == 0:
                    apart = 0.0
                elif apart > 0.0 and abs(len(a) - len(b)) < best * both:
                    if (u_numeric[u] or v_numeric[v]) and not _equal(a, b):
                        continue
                    apart = _distance(a, b, room) / both
                if apart < best:
                    best = apart
                    found[row, k] = v


@njit(cache=True, nogil=True)
def _equal(a: Any, b: Any) -> Any:
    same = len(a) == len(b)
    for i in range(len(a) if same else 0):
        same = same and a[i] == b[i]
    return same


@njit(cache=True, nogil=True)
def _distance(a: Any, b: Any, room: Any) -> Any:
    """Levenshtein's, row by row: tokens are short."""
    row = room[: len(b) + 1] if len(b) < len(room) else np.empty(len(b) + 1, dtype=np.int64)
    for j in range(len(b) + 1):
        row[j] = j
    for i in range(len(a)):
        before, row[0] = row[0], i + 1
        for j in range(len(b)):
            changed = before + (a[i] != b[j])
            before = row[j + 1]
            row[j + 1] = min(changed, row[j] + 1, row[j + 1] + 1)
    return row[len(b)]
