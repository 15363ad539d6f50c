"""A teacher's logits over the student's tokens: what a vocabulary map does to a block of rows.

Letters: V_t the teacher's tokens, V_s the student's, V the tokens that are compared.

    map        every teacher token goes to at most one student token: [n, V_t] -> [n, V_s]. A student token that several
               go to has their probability together, one that none goes to has none.
    overlap    pairs of equal tokens: both sides are cut to them and renormalised, [n, V_t] -> [n, V] and
               [n, V_s] -> [n, V].
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.head.lm_head import Finish

# A logit whose probability is 0 to the last bit, yet with which p log p is 0 and not NaN.
FLOOR = -1e30


@dataclass(frozen=True)
class Translation:
    """Which teacher tokens stand for which student tokens; tensors of ids, on one device.

    Attributes:
        vocabulary: V, tokens of a translated row.
        widest: the highest teacher id that is read; the teacher's logits must have more columns.
        source: [V] the teacher token whose logit is taken as it is; -1 where there is none, or more than one.
        merged: [R] the columns of a translated row that several teacher tokens go to.
        members: [K] the teacher tokens that go to `merged[0]`, then those of `merged[1]`, and so on.
        bounds: [R + 1] where in `members` each begins.
        columns: [V] the student's tokens that are compared, both sides renormalised over them; None: all, as they are.
    """

    vocabulary: int
    widest: int
    source: Tensor
    merged: Tensor
    members: Tensor
    bounds: Tensor
    columns: Tensor | None = None

    @classmethod
    def by_map(cls, ids: NDArray[np.integer], vocabulary: int, many: Literal["sum", "first"] = "sum") -> Translation:
        """From the student token of every teacher token.

        Args:
            ids: [V_t], -1 where there is none.
            vocabulary: V_s.
            many: whether a student token has the probability of all teacher tokens that go to it, or of the first of
                them alone, as MinED's code has it.

        Raises:
            ValueError: an id is no student token, or no teacher token has one.
        """
        teacher_ids = np.flatnonzero(ids >= 0)
        if not len(teacher_ids) or int(ids.max()) >= vocabulary:
            raise ValueError(f"a map to {vocabulary} tokens must have ids from 0 to {vocabulary - 1}, and at least one")
        order = teacher_ids[np.argsort(ids[teacher_ids], kind="stable")]  # by student token, then by teacher token
        targets, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
        source = np.full(vocabulary, -1, dtype=np.int64)
        single = counts == 1 if many == "sum" else np.ones_like(counts, dtype=bool)
        source[targets[single]] = order[starts[single]]
        several = ~single
        members = order[np.repeat(several, counts)]
        bounds = np.concatenate([[0], counts[several].cumsum()])
        parts = (source, targets[several], members, bounds)
        return cls(vocabulary, int(teacher_ids[-1]), *(torch.from_numpy(part.astype(np.int64)) for part in parts))

    @classmethod
    def by_overlap(cls, student_ids: NDArray[np.integer], teacher_ids: NDArray[np.integer]) -> Translation:
        """From pairs of equal tokens [V], each token at most once on its side.

        Raises:
            ValueError: no pairs, or a token twice.
        """
        once = len(np.unique(student_ids)) == len(student_ids) == len(np.unique(teacher_ids)) == len(teacher_ids)
        if not once or not len(student_ids):
            raise ValueError("an overlap is at least one pair of tokens, each token in one pair")
        columns, source = (torch.from_numpy(np.asarray(ids, dtype=np.int64)) for ids in (student_ids, teacher_ids))
        none = torch.zeros(0, dtype=torch.long)
        bounds = torch.zeros(1, dtype=torch.long)
        return cls(len(source), int(source.max()), source, none, none, bounds, columns)

    def to(self, device: torch.device) -> Translation:
        """The same with its tensors on `device`."""
        if self.source.device == device:
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: value.to(device) for n, value in tensors.items() if isinstance(value, Tensor)})

    def logits(self, products: Tensor, finish: Finish = Finish(), empty: float = -torch.inf) -> Tensor:  # noqa: B008
        """Rows over the compared tokens, up to a constant of each row: [n, V_t] -> [n, V] fp32 (fp64 for fp64).

        Args:
            products: of the teacher's head, before `finish`.
            empty: the logit of a token that no teacher token goes to.

        Raises:
            ValueError: the teacher predicts fewer tokens than the map reads.
        """
        if products.shape[-1] <= self.widest:
            raise ValueError(f"the map reads teacher token {self.widest}, but there are {products.shape[-1]} logits")
        if finish.softcap is None and _in_a_kernel(products):
            from stillhouse.head.translate_rows import translated  # imports numba

            return translated(products, finish.scale, empty, (self.source, self.merged, self.members, self.bounds))
        return self._by_torch(finish.forward(products), empty)

    def _by_torch(self, logits: Tensor, empty: float) -> Tensor:
        rows = logits.index_select(1, self.source.clamp(min=0))  # [n, V]
        rows.masked_fill_(self.source < 0, empty)
        if len(self.merged):
            parts = logits.index_select(1, self.members)  # [n, K]
            counts = self.bounds.diff()
            group = torch.repeat_interleave(counts, output_size=len(self.members))  # [K]
            index = group.expand_as(parts)
            highest = parts.new_full((len(parts), len(counts)), -torch.inf).scatter_reduce_(1, index, parts, "amax")
            sound = highest.masked_fill(torch.isneginf(highest), 0.0)  # [n, R]
            sums = torch.zeros_like(sound).scatter_add_(1, index, (parts - sound.gather(1, index)).exp())
            rows.index_copy_(1, self.merged, sums.log_().add_(sound))
        return rows


def _in_a_kernel(products: Tensor) -> bool:
    plain = products.is_cpu and products.dtype in (torch.float32, torch.bfloat16) and products.is_contiguous()
    return plain and products.numel() > 1_000_000 and _has_numba()


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None
