"""A batch of a student and a teacher with unlike tokens, whose rows form groups, and the same an example at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.pieces import Pieces
from stillhouse.head import Head, Pairing, Predictions
from stillhouse.head.pairing import joined
from stillhouse.methods.pair import TokenizerPair

STUDENT, TEACHER = 13, 17  # tokens of either side
Group = tuple[list[int], list[int]]  # rows of an example: the student's and the teacher's
Example = tuple[int, int, list[Group]]

# Examples as (student rows, teacher rows, groups): every shape of group, rows in none of them, one token, no group.
EXAMPLES: list[Example] = [
    (6, 7, [([0], [0]), ([1, 2], [1]), ([3], [2, 3, 4]), ([4, 5], [5, 6])]),
    (1, 1, [([0], [0])]),
    (5, 3, [([0], [0]), ([2, 3], [1])]),  # a gap before and after
    (3, 2, []),
    (4, 4, [([0], [0]), ([1], [1]), ([2], [2]), ([3], [3])]),
]


@dataclass
class Batch:
    """fp64, the student learnable."""

    student: Predictions
    teacher: Predictions
    examples: list[Example]

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.student.hidden, self.student.head.weight

    def groups(self) -> list[list[Group]]:
        """Of each example, rows of the batch."""
        found, starts = [], (0, 0)
        for n_s, n_t, groups in self.examples:
            found.append([([r + starts[0] for r in s], [r + starts[1] for r in t]) for s, t in groups])
            starts = (starts[0] + n_s, starts[1] + n_t)
        return found

    def alone(self, example: int) -> Batch:
        """One example of it, over the same leaves."""
        sizes = [(n_s, n_t) for n_s, n_t, _ in self.examples]
        n_s, n_t = sizes[example]
        a, b = sum(ours for ours, _ in sizes[:example]), sum(theirs for _, theirs in sizes[:example])
        here = [self.examples[example]]
        teacher = replace(self.teacher.part(slice(b, b + n_t)), pairing=_pairing(here))
        return Batch(self.student.part(slice(a, a + n_s)), teacher, here)


def batch(examples: list[Example] = EXAMPLES, seed: int = 0) -> Batch:
    sides = []
    for who, (vocabulary, size) in enumerate(((STUDENT, 5), (TEACHER, 6))):
        counts = _counts(examples)[who]
        generator = torch.Generator().manual_seed(seed + who)
        hidden = torch.randn(sum(counts), size, generator=generator, dtype=torch.float64).requires_grad_(who == 0)
        weight = torch.randn(vocabulary, size, generator=generator, dtype=torch.float64).requires_grad_(who == 0)
        labels = torch.randint(vocabulary, (sum(counts),), generator=generator)
        sequence = torch.repeat_interleave(torch.tensor(counts))
        sides.append(Predictions(hidden, Head(weight), labels, sequence))
    return Batch(sides[0], replace(sides[1], pairing=_pairing(examples)), examples)


def _counts(examples: list[Example]) -> tuple[list[int], list[int]]:
    return [n_s for n_s, _, _ in examples], [n_t for _, n_t, _ in examples]


def _pairing(examples: list[Example]) -> Pairing:
    counts = _counts(examples)
    sides = []
    for who in (0, 1):
        parts = []
        for *_, groups in examples:
            rows = [group[who] for group in groups]
            index = np.array([row for members in rows for row in members], dtype=np.int64)
            parts.append((index, np.cumsum([0, *map(len, rows)])))
        sides.append(joined(parts, counts[who]))
    return Pairing.of(sides[0], sides[1], counts[0], counts[1])


def tokenizers() -> TokenizerPair:
    """Every other token begins with a blank; ten are on both sides, at other places."""
    ours = [f"{' ' if i % 2 else ''}{i}" for i in range(STUDENT)]
    theirs = [f"{' ' if i % 2 else ''}{i}" for i in range(3, TEACHER)] + ["x", " y", "\nz"]
    made = [
        Pieces(tuple(t), tuple(c.encode() for c in t), {}, "characters", "", frozenset(), False) for t in (ours, theirs)
    ]
    return TokenizerPair(made[0], made[1], STUDENT, TEACHER)


def dense(side: Predictions) -> Tensor:
    """All logits [N, V]."""
    return side.hidden @ side.head.weight.T
