"""CDM against the vectors of its specification, a plain dense twin, and what must hold of any of its batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.data.pieces import Pieces
from stillhouse.head import Head, Pairing, Predictions
from stillhouse.methods import Clock, build
from stillhouse.methods.cdm import ContextualMapping
from stillhouse.methods.pair import TokenizerPair
from stillhouse.vocabulary.contextual import ContextualMap

TEACHER = ["<unk>", "the", "tok", "token", "cat", "zzz"]
STUDENT = ["!", "the", "toke", "tokens", "dog", "cat"]
MAP = np.array([-1, 1, -1, -1, 5, -1], dtype=np.int32)
Z_T, Z_S = [0.1, 2, 0.5, 3, 1, -1], [0, 1.5, 2.5, 2, 0.3, 0.7]


def pieces(tokens: list[str]) -> Pieces:
    content = tuple(token.encode() for token in tokens)
    return Pieces(tuple(tokens), content, {}, "characters", "", frozenset(), prefix_blank=False)


def pair(alignment: str = "position") -> TokenizerPair:
    return TokenizerPair(pieces(STUDENT), pieces(TEACHER), len(STUDENT), len(TEACHER), MAP, alignment, "mean")


def of_logits(logits: Tensor, sequence: list[int], inputs: list[int]) -> Predictions:
    """Hidden states of width V under a head that is the identity."""
    head = Head(torch.eye(logits.shape[-1], dtype=logits.dtype))
    labels = torch.zeros(len(logits), dtype=torch.long)
    return Predictions(logits, head, labels, torch.tensor(sequence), inputs=torch.tensor(inputs))


def row_by_row(counts: list[int]) -> Pairing:
    rows = np.arange(sum(counts)), np.arange(sum(counts) + 1)
    return Pairing.of(rows, rows, counts, counts)


def one_row(**settings: Any) -> tuple[Tensor, Tensor]:
    """KD of the specification's row, and its gradient by the student's logits."""
    z = torch.tensor([Z_S], dtype=torch.float64, requires_grad=True)
    student = of_logits(z, [0], [1])
    teacher = replace(of_logits(torch.tensor([Z_T], dtype=torch.float64), [0], [1]), pairing=row_by_row([1]))
    method = build("cdm", top_k=3, kd_weight=1.0, protect_digits=False, **settings)
    method.tokenizers = pair()
    terms = method(student, teacher, Clock())
    (gradient,) = torch.autograd.grad(terms.loss, z)
    return terms.sums["kd"], gradient


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"preset": "official", "temperature": 1.0}, 0.082414),
        ({"preset": "official", "temperature": 0.8}, 0.545764),
        ({"preset": "official", "temperature": 2.0}, -3.651023),
        ({"preset": "official", "temperature": 1.0, "reduction": "element"}, 0.013736),
        ({"preset": "official", "temperature": 2.0, "reduction": "element"}, -0.608504),
        ({"directions": "t2s"}, 0.037781),
        ({"directions": "t2s", "temperature": 0.8}, 0.033457),
        ({"directions": "t2s", "temperature": 2.0}, 0.043981),
        ({"directions": "s2t"}, 0.028127),
        ({"directions": "s2t", "b_divergence": "forward_kl"}, 0.029434),
        ({}, (0.037781 + 0.028127) / 2),
        ({"layout": "joint"}, 0.288200),
        ({"layout": "joint", "temperature": 0.8}, 0.963491),
        ({"layout": "joint", "temperature": 2.0}, -4.636538),
    ],
)
def test_the_vectors_of_the_specification(settings: dict[str, Any], expected: float) -> None:
    value, _ = one_row(**settings)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"preset": "official"}, {"layout": "joint", "temperature": 2.0}])
def test_the_gradient_is_that_of_the_value(settings: dict[str, Any]) -> None:
    _, gradient = one_row(**settings)
    for token in range(len(STUDENT)):
        sides = []
        for step in (1e-6, -1e-6):
            Z_S[token] += step
            sides.append(one_row(**settings)[0].item())
            Z_S[token] -= step
        assert gradient[0, token].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_a_match_is_the_nearest_that_nothing_is_mapped_to() -> None:
    forward = ContextualMap.of(TEACHER, STUDENT, MAP, 0.3)
    assert forward(np.array([[3, 1, 4]]), np.array([[2, 3, 1]])).tolist() == [[3, 1, 5]]
    assert forward(np.array([[3, 1, 4]]), np.array([[2, 0, 1]])).tolist() == [[2, 1, 5]]  # "tokens" is not likely here
    strict = replace(forward, threshold=0.09)
    assert strict(np.array([[3, 1, 4]]), np.array([[2, 3, 1]])).tolist() == [[-1, 1, 5]]


def test_the_likelier_of_equally_near_tokens_is_taken() -> None:
    forward = ContextualMap.of(["abcd"], ["abcx", "abcy"], np.array([-1]), 0.3)
    assert forward(np.array([[0], [0]]), np.array([[1, 0], [0, 1]])).tolist() == [[1], [0]]


def test_numbers_match_their_equals_alone() -> None:
    words = (["12", "1", "year"], ["13", "12", "years"])
    none = np.array([-1, -1, -1])
    sources, targets = np.array([[0, 1, 2]]), np.array([[0, 2, 1]])
    assert ContextualMap.of(*words, none, 0.3)(sources, targets).tolist() == [[1, -1, 2]]
    loose = ContextualMap.of(*words, none, 0.34, protect_digits=False)
    assert loose(sources, np.array([[0, 2]])).tolist() == [[0, 0, 2]]


def test_a_match_of_one_row_holds_in_all_rows_of_its_example_alone() -> None:
    forward = ContextualMap.of(TEACHER, STUDENT, MAP, 0.3)
    sources = np.array([[3], [3], [3], [3]])
    targets = np.array([[2], [3], [4], [4]])
    assert forward(sources, targets).squeeze(1).tolist() == [2, 3, -1, -1]
    assert forward(sources, targets, [3, 1]).squeeze(1).tolist() == [3, 3, 3, -1]  # the last match, in its example


def batch(seed: int, rows: list[int]) -> tuple[Tensor, Tensor, list[int], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    n = sum(rows)
    z_s, z_t = (torch.randn(n, 6, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    inputs = torch.randint(0, 6, (n,), generator=generator).tolist()
    return z_s, z_t, [example for example, count in enumerate(rows) for _ in range(count)], inputs


@pytest.mark.parametrize("alignment", ["position", "entropy_dtw"])
@pytest.mark.parametrize("settings", [{}, {"scope": "sequence"}, {"preset": "official"}])
def test_the_loss_of_a_batch_is_that_of_its_examples(alignment: str, settings: dict[str, Any]) -> None:
    z_s, z_t, of, inputs = batch(2, [5, 3])
    method = build("cdm", top_k=4, threshold=0.5, **settings)
    method.tokenizers = pair(alignment)

    def loss(rows: slice, counts: list[int]) -> float:
        sequence = [example - of[rows][0] for example in of[rows]]
        student = of_logits(z_s[rows].clone().requires_grad_(), sequence, inputs[rows])
        teacher = replace(of_logits(z_t[rows], sequence, inputs[rows]), pairing=row_by_row(counts))
        return method(student, teacher, Clock()).loss.item()

    parts = loss(slice(0, 5), [5]) + loss(slice(5, 8), [3])
    assert loss(slice(0, 8), [5, 3]) == pytest.approx(parts, rel=1e-9)


def test_the_dense_twin() -> None:
    """Clean, both directions, scope position, with a merged row: as the specification's 2.7 says, without blocks."""
    z_s, z_t, of, inputs = batch(7, [4])
    groups = (np.array([0, 1, 2, 3]), np.array([0, 1, 3, 4])), (np.array([0, 1, 2, 3]), np.array([0, 2, 3, 4]))
    z = z_s.clone().requires_grad_()
    teacher = replace(of_logits(z_t, of, inputs), pairing=Pairing.of(*groups, [4], [4], "mean"))
    method = build("cdm", top_k=3, threshold=0.5, temperature=1.5, kd_weight=1.0, protect_digits=False)
    method.tokenizers = pair()
    found = method(of_logits(z, of, inputs), teacher, Clock())
    twin_z = z_s.clone().requires_grad_()
    ours = torch.stack([twin_z[0], twin_z[[1, 2]].mean(0), twin_z[3]])
    theirs = torch.stack([z_t[[0, 1]].mean(0), z_t[2], z_t[3]])
    forward = ContextualMap.of(TEACHER, STUDENT, MAP, 0.5, protect_digits=False)
    inverse = np.array([-1, 1, -1, -1, -1, 4])
    backward = ContextualMap.of(STUDENT, TEACHER, inverse, 0.5, protect_digits=False)
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(ours, theirs, strict=True):
        top_s, top_t = s.topk(3).indices, t.topk(3).indices
        to_s, to_t = (
            forward(top_t[None].numpy(), top_s[None].numpy())[0],
            backward(top_s[None].numpy(), top_t[None].numpy())[0],
        )
        a = [(s[v], t[u]) for u, v in zip(top_t, to_s, strict=True) if v >= 0]
        b = [(s[u], t[v]) for u, v in zip(top_s, to_t, strict=True) if v >= 0]
        for side, reverse in ((a, False), (b, True)):
            if not side:
                continue
            q = (torch.stack([x for x, _ in side]) / 1.5).log_softmax(0)
            p = (torch.stack([y for _, y in side]) / 1.5).log_softmax(0)
            kl = (q.exp() * (q - p)).sum() if reverse else (p.exp() * (p - q)).sum()
            total = total + 1.5**2 * kl / 2 * 4 / 3
    assert found.sums["kd"].item() == pytest.approx(total.item(), rel=1e-9)
    assert found.sums["aligned"].item() == 3
    (ours_gradient,), (expected,) = torch.autograd.grad(found.loss, z), torch.autograd.grad(total, twin_z)
    torch.testing.assert_close(ours_gradient, expected)


def test_a_row_where_nothing_matches_is_worth_nothing() -> None:
    z = torch.zeros(1, 6, dtype=torch.float64)
    z[0, 4] = 9.0  # "dog" alone is likely
    z.requires_grad_()
    theirs = torch.zeros(1, 6, dtype=torch.float64)
    theirs[0, 5] = 9.0  # and "zzz"
    teacher = replace(of_logits(theirs, [0], [1]), pairing=row_by_row([1]))
    method = build("cdm", top_k=1, kd_weight=1.0)
    method.tokenizers = pair()
    terms = method(of_logits(z, [0], [1]), teacher, Clock())
    assert terms.sums["kd"].item() == 0.0 and terms.sums["matched"].item() == 0.0
    (gradient,) = torch.autograd.grad(terms.loss, z)
    assert bool((gradient == 0).all())


def test_the_last_match_is_the_last_of_the_text_though_merged_rows_come_last() -> None:
    """'token' matches 'toke' in the merged row, which comes first in the text, and 'tokens' in the last row."""
    z = torch.full((3, 6), -9.0, dtype=torch.float64)
    z[0, 2] = z[1, 2] = z[2, 3] = 9.0
    theirs = torch.full((2, 6), -9.0, dtype=torch.float64)
    theirs[:, 3] = 9.0
    groups = (np.array([0, 1, 2]), np.array([0, 2, 3])), (np.array([0, 1]), np.array([0, 1, 2]))
    pairing = Pairing.of(*groups, [3], [2], "mean")
    assert pairing.student_index.tolist() == [2, 0, 1]  # the shared row before the merged one
    teacher = replace(of_logits(theirs, [0, 0], [1, 1]), pairing=pairing)
    method = build("cdm", top_k=1, scope="sequence", directions="t2s", kd_weight=1.0)
    method.tokenizers = pair()
    method(of_logits(z.requires_grad_(), [0, 0, 0], [1, 1, 1]), teacher, Clock())
    assert isinstance(method, ContextualMapping)
    rows = method.vocabulary.rows(of_logits(z, [0, 0, 0], [1, 1, 1]), teacher)
    assert rows.t2s is not None and rows.t2s.student.squeeze(1).tolist() == [9.0, -9.0]  # "tokens" in both
