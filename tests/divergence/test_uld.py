"""ULD's distance by ranks: other vocabularies, equal probabilities, and what the highest ranks alone leave out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.divergence import Rows, build
from stillhouse.divergence.uld import RankDistance, _highest, _ranked


def padded(p: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(p.sort(dim=-1, descending=True, stable=True).values, (0, width - p.shape[-1]))


def twin(student: Tensor, teacher: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Values [N] and gradients [N, V_s] in fp64 by autograd through a sort."""
    student = student.double().requires_grad_()
    width = max(student.shape[-1], teacher.shape[-1])
    q, p = (padded((side.double() / temperature).softmax(-1), width) for side in (student, teacher))
    values = (p - q).abs()[:, : top_k or None].sum(-1)
    return values.detach(), torch.autograd.grad(values.sum(), student)[0]


def drawn(seed: int, rows: int, width: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 4),
    ours=st.integers(1, 90),
    theirs=st.integers(1, 90),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 5, 89, 1000]),
)
def test_vocabularies_of_any_size(dtype, seed, rows, ours, theirs, temperature, top_k):
    student, teacher = drawn(seed, rows, ours).to(dtype), drawn(seed + 1, rows, theirs).to(dtype)
    distance = build("uld", temperature=temperature, top_k=top_k)
    values, gradient = distance.value_and_gradient(Rows(student, teacher, any_vocabularies=True))
    wanted, wanted_gradient = twin(student, teacher, temperature, top_k)
    tight = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(values.double(), wanted, rtol=tight, atol=tight)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=tight, atol=tight)


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_of_equal_probabilities_the_lowest_id_comes_first(dtype, top_k):
    student = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]], dtype=dtype)
    teacher = torch.tensor([[3.0, -2.0, 1.0], [0.0, 0.5, 1.0]], dtype=dtype)
    values, gradient = RankDistance(1.0, top_k).value_and_gradient(Rows(student, teacher, any_vocabularies=True))
    wanted, wanted_gradient = twin(student, teacher, 1.0, top_k)
    torch.testing.assert_close(values.double(), wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-6, atol=1e-7)


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 3), width=st.integers(1, 600), share=st.floats(0.0, 1.0))
def test_numpy_ranks_as_torch_does(seed, rows, width, share):
    """With equal ones, zeros and numbers so small that they are not normal."""
    q = drawn(seed, rows, width, 30.0).float().softmax(-1)
    q = torch.where(torch.rand(q.shape) < 0.3, (q * 8).round() / 8, q)
    count = max(1, round(share * width))
    values, order = q.sort(dim=-1, descending=True, stable=True)
    ranked, ids = _ranked(q, count)
    assert torch.equal(ranked, values[:, :count])
    assert torch.equal(ids, order[:, :count])
    assert torch.equal(_highest(q, count), values[:, :count])


@given(seed=st.integers(0, 2**32), spread=st.sampled_from([0.5, 3.0, 30.0]), top_k=st.integers(1, 80))
def test_what_the_highest_ranks_leave_out_is_within_its_bound(seed, spread, top_k):
    rows = Rows(drawn(seed, 3, 40, spread), drawn(seed + 1, 3, 70, spread), any_vocabularies=True)
    some = RankDistance(1.0, top_k)
    missing = RankDistance(1.0, 0).value_and_gradient(rows)[0] - some.value_and_gradient(rows)[0]
    bound = some.left_out(rows)
    assert (missing >= -1e-12).all() and (missing <= bound + 1e-12).all()
    q, p = (padded(side.logits.softmax(-1), 70)[:, top_k:].sum(-1) for side in (rows.student, rows.teacher))
    torch.testing.assert_close(bound, q + p, rtol=1e-9, atol=1e-12)


def test_tokens_do_not_matter_only_ranks():
    student, teacher = drawn(0, 4, 30), drawn(1, 4, 50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    distance = RankDistance(1.0, 0)
    rows = (Rows(student, teacher[:, columns], any_vocabularies=True) for columns in (torch.arange(50), order))
    first, second = (distance.value_and_gradient(side) for side in rows)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    moved = Rows(student, student[:, torch.randperm(30, generator=torch.Generator().manual_seed(3))])
    assert distance.value_and_gradient(moved)[0].abs().max() <= 1e-15


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_bad_row_is_not_hidden_and_spoils_no_other(side):
    student, teacher = drawn(0, 3, 30).float(), drawn(1, 3, 50).float()
    {"student": student, "teacher": teacher}[side][1, 7] = torch.nan
    for top_k in (0, 5):
        distance = RankDistance(1.0, top_k)
        values, gradient = distance.value_and_gradient(Rows(student, teacher, any_vocabularies=True))
        assert values.isnan().tolist() == [False, True, False]
        assert gradient[[0, 2]].isfinite().all()
