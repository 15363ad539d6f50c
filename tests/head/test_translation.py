"""A teacher with other tokens: its rows translated, and losses against them, next to dense fp64 twins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse import divergence
from stillhouse.head import Blocks, Head, Pairing, Predictions, Term, Translation, rowwise_loss
from stillhouse.head.lm_head import Finish

STUDENT, TEACHER = 23, 31
SMALL = Blocks(rows=5, elements=40, kernel_from=1)


def a_map(generator: np.random.Generator, none: float) -> np.ndarray:
    ids = generator.integers(0, STUDENT, TEACHER)
    ids[generator.random(TEACHER) < none] = -1
    ids[3] = 0
    return ids


def moved(p: Tensor, ids: np.ndarray, many: str = "sum") -> Tensor:
    """Twin: the mass of every teacher token, put where it goes; not normalised."""
    found = torch.zeros(len(p), STUDENT, dtype=torch.float64)
    for token, target in enumerate(ids):
        if target >= 0 and (many == "sum" or token == int(np.flatnonzero(ids == target)[0])):
            found[:, target] += p[:, token]
    return found


@pytest.mark.parametrize("many", ["sum", "first"])
@pytest.mark.parametrize("none", [0.0, 0.4])
def test_mass_goes_where_the_map_says(many: str, none: float) -> None:
    generator = np.random.default_rng(3)
    ids = a_map(generator, none)
    logits = torch.from_numpy(generator.normal(size=(7, TEACHER)) * 5)
    translation = Translation.by_map(ids, STUDENT, many)  # type: ignore[arg-type]
    found = translation.logits(logits)
    expected = moved(logits.softmax(-1), ids, many)
    torch.testing.assert_close(found.softmax(-1), expected / expected.sum(-1, keepdim=True))
    assert torch.equal(torch.isneginf(found), expected == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_does_what_torch_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(-40, 900, (5_000,), generator=generator).clamp_min(-1).numpy()
    logits = (torch.randn(300, 5_000, generator=generator) * 8).to(dtype)
    logits[0] = logits[0] * 40  # sums of exponentials that underflow around the row's highest
    logits[1, 7] = -torch.inf
    translation = Translation.by_map(ids, 900)
    finish = Finish(scale=0.25)
    by_torch = translation._by_torch(finish.forward(logits), -3.0)
    found = translation.logits(logits, finish, -3.0)
    torch.testing.assert_close(found, by_torch, rtol=2e-6, atol=2e-6)
    logits[2, 11] = torch.nan
    assert bool(translation.logits(logits)[2].isnan().any())


def test_overlap_cuts_both_sides_to_pairs() -> None:
    translation = Translation.by_overlap(np.array([2, 5, 9]), np.array([30, 0, 4]))
    logits = torch.randn(4, TEACHER)
    assert torch.equal(translation.logits(logits), logits[:, [30, 0, 4]])
    with pytest.raises(ValueError, match="each token in one pair"):
        Translation.by_overlap(np.array([2, 2]), np.array([1, 3]))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="ids from 0 to 22"):
        Translation.by_map(np.array([1, STUDENT]), STUDENT)
    with pytest.raises(ValueError, match="at least one"):
        Translation.by_map(np.array([-1, -1]), STUDENT)
    translation = Translation.by_map(np.arange(20), STUDENT)
    with pytest.raises(ValueError, match="teacher token 19, but there are 12 logits"):
        translation.logits(torch.randn(2, 12))


def sides(rows: int, seed: int = 0) -> tuple[Predictions, Predictions]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, STUDENT, (rows,), generator=generator)
    sequence = torch.zeros(rows, dtype=torch.long)
    student = Predictions(
        drawn(rows, 6).requires_grad_(),
        Head(drawn(STUDENT + 2, 6).requires_grad_(), vocabulary=STUDENT),
        labels,
        sequence,
    )
    teacher = Predictions(drawn(rows, 9), Head(drawn(TEACHER, 9), scale=0.7, softcap=4.0), labels, sequence)
    return student, teacher


LOSSES = {
    "forward_kl": lambda q, p: (p * (p.clamp_min(1e-300).log() - q.log())).sum(-1),
    "tvd": lambda q, p: (p - q).abs().sum(-1) / 2,
    "jsd": lambda q, p: (p * (2 * p.clamp_min(1e-300) / (p + q)).log() + q * (2 * q / (p + q)).log()).sum(-1) / 2,
    # Where the teacher gives nothing it is infinite; those tokens do not count.
    "reverse_kl": lambda q, p: torch.where(p > 0, q * (q / p.clamp_min(1e-300)).log(), 0.0).sum(-1),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loss_against_translated_rows_is_that_of_the_dense_rows(name: str, shared: bool, dtype: torch.dtype) -> None:
    student, teacher = sides(13)
    ids = a_map(np.random.default_rng(1), 0.3)
    pairs = np.array([0, 4, 5, 22]), np.array([8, 3, 30, 11])
    translation = Translation.by_overlap(*pairs) if shared else Translation.by_map(ids, STUDENT)
    q = student.logits().softmax(-1).detach().requires_grad_()
    z = student.logits()
    teacher_p = teacher.logits().double().softmax(-1)
    if shared:
        q, p = z[:, pairs[0]].double().softmax(-1), teacher_p[:, pairs[1]]
    else:
        q, p = z.double().softmax(-1), moved(teacher_p, ids)
    p = p / p.sum(-1, keepdim=True)
    expected = LOSSES[name](q, p)
    ce = torch.nn.functional.cross_entropy(z.double(), student.labels, reduction="none")
    expected_gradients = torch.autograd.grad((0.25 * ce + 0.75 * expected).sum(), leaves(student))
    cast = {side: _as(predictions, dtype) for side, predictions in (("s", student), ("t", teacher))}
    terms = [
        Term("ce", divergence.build("cross_entropy"), 0.25),
        Term("kd", divergence.build(name, temperature=1.0), 0.75),
    ]
    with_other_tokens = replace(cast["t"], translation=translation)
    result = rowwise_loss(cast["s"], with_other_tokens, terms, {"accuracy": divergence.Rows.accuracy}, SMALL)
    tight = 1e-9 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(result.values["kd"].double(), expected.detach(), rtol=tight, atol=tight)
    torch.testing.assert_close(result.values["ce"].double(), ce.detach(), rtol=tight, atol=tight)
    accuracy = (z.argmax(-1) == student.labels).double()
    torch.testing.assert_close(result.values["accuracy"].double(), accuracy)
    for ours, theirs in zip(torch.autograd.grad(result.loss, leaves(cast["s"])), expected_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=10 * tight, atol=10 * tight)


def leaves(side: Predictions) -> list[Tensor]:
    return [side.hidden, side.head.weight]


def _as(side: Predictions, dtype: torch.dtype) -> Predictions:
    weight = side.head.weight.detach().to(dtype).requires_grad_()
    return replace(side, hidden=side.hidden.detach().to(dtype).requires_grad_(), head=replace(side.head, weight=weight))


def test_other_vocabularies_without_a_translation_are_refused() -> None:
    student, teacher = sides(3)
    with pytest.raises(ValueError, match="student predicts 23 tokens, teacher 31"):
        rowwise_loss(student, teacher, [Term("kd", divergence.build("forward_kl", temperature=1.0))])


def test_groups_are_merged_and_parted() -> None:
    student = np.array([0, 1, 2, 3, 3, 5]), np.array([0, 1, 3, 4, 5, 6])  # {0}, {1, 2}, {3}, {3}, {5}
    teacher = np.array([0, 1, 2, 2, 3, 4]), np.array([0, 2, 3, 4, 5, 6])  # {0, 1}, {2}, {2}, {3}, {4}
    mean = Pairing.of(student, teacher, [7], [5])
    assert mean.shared == 3  # {0}, {3} once, {5}
    assert mean.student_index.tolist() == [0, 3, 5, 1, 2, 3]
    assert mean.teacher_index.tolist() == [0, 1, 2, 4, 2, 3]
    assert mean.teacher_bounds.tolist() == [0, 2, 3, 4, 5, 6]
    assert mean.rest.tolist() == [1, 2, 4, 6]
    last = Pairing.of(student, teacher, [7], [5], "last")
    assert last.student_index.tolist() == [0, 2, 3, 5, 3] and last.shared == 4
    assert last.teacher_index.tolist() == [1, 2, 2, 4, 3]
    assert Pairing.of(student, teacher, [7], [5], "first").student_index.tolist() == [0, 1, 3, 5, 3]


def test_a_mean_of_predictions_has_the_mean_logits() -> None:
    student, _ = sides(6)
    index, bounds = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 1, 3, 4])
    merged = student.means(index, bounds)
    z = student.logits()
    torch.testing.assert_close(merged.logits(), torch.stack([z[0], (z[2] + z[3]) / 2, z[5]]))
    assert merged.labels.tolist() == student.labels[[0, 2, 5]].tolist()
    merged.logits().sum().backward()
    assert student.hidden.grad is not None and bool((student.hidden.grad[[1, 4]] == 0).all())


@pytest.mark.parametrize("kernel_from", [1, 10**9])
def test_monitors_alone_have_no_gradient(kernel_from: int) -> None:
    student, _ = sides(4)
    student = _as(student, torch.float32)
    blocks = replace(SMALL, kernel_from=kernel_from)
    result = rowwise_loss(student, None, [], {"ce": divergence.Rows.cross_entropy}, blocks)
    (student.hidden.sum() * 0.0 + result.loss).backward()
    assert student.hidden.grad is not None and bool((student.hidden.grad == 0).all())
