"""top_k, gather and log_normalizer against their twins: all logits at once, fp64, gradients by autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillhouse.head import Blocks, Head, Predictions, sparse
from tests.head.sides import SMALL, gradients, logits, predictions


def some_ids(rows: int, k: int, vocabulary: int) -> Tensor:
    """[N, k], some of them more than once in a row."""
    return (torch.arange(rows)[:, None] * 5 + torch.arange(k) ** 2) % vocabulary


@dataclass(frozen=True)
class Operation:
    ours: Callable[[Predictions, Blocks | None], Tensor]
    twin: Callable[[Tensor], Tensor]


K = 4
OPERATIONS = {
    "top_k": Operation(lambda side, blocks: side.top_k(K, blocks).values, lambda z: z.topk(K).values),
    "gather": Operation(
        lambda side, blocks: side.gather(some_ids(len(side), 6, side.head.vocabulary), blocks),
        lambda z: z.gather(-1, some_ids(len(z), 6, z.shape[1])),
    ),
    "log_normalizer": Operation(lambda side, blocks: side.log_normalizer(1.0, blocks), lambda z: z.logsumexp(-1)),
    "log_normalizer_T": Operation(
        lambda side, blocks: side.log_normalizer(2.5, blocks), lambda z: (z / 2.5).logsumexp(-1)
    ),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)


def upstream(shape: torch.Size) -> Tensor:
    """An arbitrary gradient of both signs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def both(name: str, side: Predictions, blocks: Blocks | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """Value and gradients by our operation, and by its twin."""
    found = []
    for value in (OPERATIONS[name].ours(side, blocks), OPERATIONS[name].twin(logits(side))):
        (value * upstream(value.shape)).sum().backward()
        found.append([value.detach(), *gradients(side)])
    return found[0], found[1]


@every_operation
@pytest.mark.parametrize(("softcap", "scale", "bias"), list(itertools.product([None, 4.0], [1.0, 0.25], [False, True])))
@pytest.mark.parametrize("blocks", [None, SMALL, Blocks(rows=1, elements=1, vocabulary_tile=1)])
def test_value_and_gradients_equal_the_dense_twin(name, softcap, scale, bias, blocks) -> None:
    extra = {"bias": torch.randn(13 + 2, dtype=torch.float64).requires_grad_()} if bias else {}
    side = predictions(1, 7, 4, 13, torch.float64, padded=2, softcap=softcap, scale=scale, **extra)
    ours, twin = both(name, side, blocks)
    for mine, theirs in zip(ours, twin, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@every_operation
@given(
    rows=st.integers(0, 30),
    per_block=st.integers(1, 9),
    elements=st.integers(1, 200),
    tile=st.integers(1, 9),
    seed=st.integers(0, 10_000),
)
def test_no_block_size_changes_anything(name, rows, per_block, elements, tile, seed) -> None:
    side = predictions(seed, rows, 5, 11, torch.float64, softcap=5.0)
    ours, twin = both(name, side, Blocks(per_block, elements, tile))
    for mine, theirs in zip(ours, twin, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["top_k", "log_normalizer"])
@given(rows=st.integers(1, 20), seed=st.integers(0, 10_000))
def test_rows_are_independent_and_in_any_order(name, rows, seed) -> None:
    side = predictions(seed, rows, 5, 11, torch.float64)
    chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[: max(1, rows - 2)]
    whole = OPERATIONS[name].ours(side, SMALL)
    part = OPERATIONS[name].ours(replace(side, hidden=side.hidden[chosen]), SMALL)
    torch.testing.assert_close(part, whole[chosen], rtol=1e-12, atol=1e-12)
    by_part, by_whole = (torch.autograd.grad(value.square().sum(), side.hidden)[0] for value in (part, whole))
    expected = torch.zeros_like(by_whole)
    expected[chosen] = by_whole[chosen]
    torch.testing.assert_close(by_part, expected, rtol=1e-12, atol=1e-12)


@given(rows=st.integers(0, 12), k=st.integers(0, 40), elements=st.integers(1, 300), seed=st.integers(0, 10_000))
def test_gather_takes_any_ids_any_number_of_times(rows, k, elements, seed) -> None:
    side = predictions(seed, rows, 5, 11, torch.float64)
    ids = torch.randint(11, (rows, k), generator=torch.Generator().manual_seed(seed))
    ours, twin = side.gather(ids, Blocks(elements=elements)), logits(side).gather(-1, ids)
    torch.testing.assert_close(ours, twin, rtol=1e-12, atol=1e-12)
    (ours * upstream(ours.shape)).sum().backward()
    mine = gradients(side)
    (twin * upstream(twin.shape)).sum().backward()
    for found, expected in zip(mine, gradients(side), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_top_k_finds_the_highest_in_order_and_its_ids(scale: float) -> None:
    side = predictions(1, 9, 4, 13, torch.float64, padded=3, scale=scale, softcap=2.0)
    for k in (1, 5, 13):
        values, ids = side.top_k(k, SMALL)
        expected = logits(side).topk(k)
        torch.testing.assert_close(values, expected.values, rtol=1e-12, atol=1e-12)
        assert ids.tolist() == expected.indices.tolist()
    assert side.top_k(13).values.grad_fn is not None
    empty = replace(side, hidden=side.hidden[:0]).top_k(3)
    assert empty.values.shape == empty.ids.shape == (0, 3)


@every_operation
def test_frozen_leaves_get_no_gradient(name: str) -> None:
    side = predictions(1, 5, 4, 9, torch.float32, bias=torch.zeros(9, requires_grad=True))
    leaves = [side.hidden, side.head.weight, side.head.bias]
    for alone in leaves:
        for leaf in leaves:
            leaf.requires_grad_(leaf is alone)
        OPERATIONS[name].ours(side, SMALL).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [leaf is alone for leaf in leaves]
        alone.grad = None


@every_operation
def test_two_backward_passes_add_up_and_the_value_may_be_scaled_afterwards(name: str) -> None:
    side = predictions(1, 5, 4, 9, torch.float64, softcap=3.0)
    once, _ = both(name, side, SMALL)
    for value in (OPERATIONS[name].ours(side, SMALL), OPERATIONS[name].ours(side, None)):
        (value * 0.5 * upstream(value.shape)).sum().backward()
    for found, expected in zip(gradients(side), once[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    value = OPERATIONS[name].ours(side, SMALL)
    for _ in range(2):
        (value * 0.5 * upstream(value.shape)).sum().backward(retain_graph=True)
    for found, expected in zip(gradients(side), once[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@every_operation
def test_without_gradient_the_value_is_the_same(name: str) -> None:
    side = predictions(1, 5, 4, 9, torch.float64)
    with torch.no_grad():
        value = OPERATIONS[name].ours(side, SMALL)
    assert not value.requires_grad
    torch.testing.assert_close(value, OPERATIONS[name].ours(side, SMALL).detach())


@pytest.mark.parametrize("name", ["gather", "log_normalizer", "log_normalizer_T"])
@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_products_are_as_near_as_plain_bf16_and_the_statistics_are_fp32(name: str, autocast: bool) -> None:
    side = predictions(1, 32, 16, 101, torch.float32 if autocast else torch.bfloat16, softcap=20.0)
    exact = replace(
        side,
        hidden=side.hidden.detach().double().requires_grad_(),
        head=replace(side.head, weight=side.head.weight.detach().double().requires_grad_()),
    )
    truth, _ = both(name, exact)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = OPERATIONS[name].ours(side, SMALL)
    assert value.dtype == torch.float32
    (value * upstream(value.shape).float()).sum().backward()
    assert side.hidden.grad.dtype == side.hidden.dtype and side.head.weight.grad.dtype == side.head.weight.dtype
    found = [value.detach(), *gradients(side)]
    for mine, right in zip(found, truth, strict=True):
        error = (mine.double() - right).norm() / right.norm()
        assert 1e-5 < error < 1e-2  # in bf16 indeed, and no worse than its 2^-8


def test_top_k_in_bf16_is_the_gather_of_tokens_that_are_highest_but_for_rounding() -> None:
    side = predictions(1, 32, 16, 101, torch.bfloat16)
    values, ids = side.top_k(5, SMALL)
    assert values.dtype == torch.float32 and torch.equal(values, side.gather(ids))
    exact = side.hidden.detach().double() @ side.head.weight.detach().double().T
    least = exact.topk(5).values[:, -1:]
    assert (exact.gather(-1, ids) >= least - 2**-7 * exact.abs().amax(-1, keepdim=True)).all()


@pytest.fixture(params=[0, 1_000], ids=["by rows of the head", "by products"])
def way_back(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which the gradient of `top_k` is taken; which it is depends on k and the vocabulary."""
    monkeypatch.setattr(sparse, "DENSE_TO", request.param)


@pytest.mark.usefixtures("way_back")
@pytest.mark.parametrize(("softcap", "scale", "bias"), list(itertools.product([None, 1.5], [1.0, -0.5], [False, True])))
@pytest.mark.parametrize("blocks", [None, SMALL])
def test_top_k_either_way_equals_the_dense_twin(softcap, scale, bias, blocks) -> None:
    drawn = torch.randn(13 + 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    extra = {"bias": drawn.requires_grad_()} if bias else {}
    side = predictions(1, 7, 4, 13, torch.float64, padded=2, softcap=softcap, scale=scale, **extra)
    assert side.top_k(K, blocks).ids.tolist() == logits(side).topk(K).indices.tolist()
    ours, twin = both("top_k", side, blocks)
    for mine, theirs in zip(ours, twin, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("way_back")
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_top_k_in_bf16_is_as_near_as_plain_bf16_and_in_fp32(scale: float, autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    drawn = torch.randn(101, generator=torch.Generator().manual_seed(5)).to(dtype)
    side = predictions(1, 32, 16, 101, dtype, softcap=20.0, scale=scale, bias=drawn.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values, ids = side.top_k(5, SMALL)
    assert values.dtype == torch.float32
    (values * upstream(values.shape).float()).sum().backward()
    dtypes = [side.hidden.dtype, side.head.weight.dtype, drawn.dtype]
    found = gradients(side)
    assert [gradient.dtype for gradient in found] == dtypes
    leaves = [leaf.detach().double().requires_grad_() for leaf in (side.hidden, side.head.weight, drawn)]
    exact = replace(side, hidden=leaves[0], head=replace(side.head, weight=leaves[1], bias=leaves[2]))
    truth = logits(exact).gather(-1, ids)
    (truth * upstream(truth.shape)).sum().backward()
    for mine, right in zip([values.detach(), *found], [truth.detach(), *gradients(exact)], strict=True):
        error = (mine.double() - right).norm() / right.norm()
        assert error < 1e-2  # 2^-8 and the sums of it
    assert (values.detach().double() - truth.detach()).abs().max() > 1e-5  # in bf16 indeed


@pytest.mark.usefixtures("way_back")
def test_the_heads_gradient_by_top_k_grows_past_what_bf16_can_count_to() -> None:
    """A sum of ones in bf16 stays at 256."""
    side = predictions(1, 600, 4, 13, torch.bfloat16)
    side = replace(side, hidden=torch.ones_like(side.hidden).requires_grad_())
    values, ids = side.top_k(1, Blocks(rows=1, elements=1))
    values.sum().backward()
    assert (ids == ids[0]).all() and gradients(side)[1][ids[0, 0]].tolist() == [600.0] * 4


@every_operation
def test_fp32_is_within_a_millionth_of_fp64(name: str) -> None:
    side = predictions(1, 32, 16, 101, torch.float32)
    exact = replace(
        side,
        hidden=side.hidden.detach().double().requires_grad_(),
        head=replace(side.head, weight=side.head.weight.detach().double().requires_grad_()),
    )
    ours = OPERATIONS[name].ours(side, None)
    (ours * upstream(ours.shape).float()).sum().backward()
    for mine, right in zip([ours.detach(), *gradients(side)], both(name, exact)[1], strict=True):
        assert mine.dtype == torch.float32
        assert (mine.double() - right).norm() <= 1e-6 * right.norm()


@every_operation
def test_the_upstream_gradient_is_left_as_it_is(name: str) -> None:
    side = predictions(1, 5, 4, 9, torch.float64, softcap=3.0, scale=0.5)
    value = OPERATIONS[name].ours(side, SMALL)
    given_ = torch.ones_like(value)
    torch.autograd.grad(value, [side.hidden, side.head.weight], grad_outputs=given_)
    assert (given_ == 1.0).all()


def test_a_gathered_logit_may_be_written_over() -> None:
    side = predictions(1, 5, 4, 9, torch.float64)
    values = side.top_k(3).values
    values.div_(2.0)
    values.sum().backward()
    assert len(gradients(side)) == 2


def test_dense_logits_are_for_looking() -> None:
    side = predictions(1, 5, 4, 9, torch.float64, padded=2, softcap=3.0)
    torch.testing.assert_close(side.logits(), logits(side), rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    side = predictions(1, 5, 4, 9, torch.float64, padded=2)
    for k in (0, 10, -1):
        with pytest.raises(ValueError, match="k must be from 1 to the 9 tokens"):
            side.top_k(k)
    for ids, wrong in (
        (torch.zeros(5, 2), "ids must be integers, got torch.float32"),
        (torch.zeros(5, 2, dtype=torch.bool), "ids must be integers"),
        (torch.zeros(4, 2, dtype=torch.long), r"ids must be \[5, k\], got \[4, 2\]"),
        (torch.zeros(5, dtype=torch.long), r"ids must be \[5, k\], got \[5\]"),
        (torch.full((5, 2), 9), "ids must be from 0 to 8, got 9 to 9"),
        (torch.full((5, 2), -1), "ids must be from 0 to 8, got -1 to -1"),
    ):
        with pytest.raises(ValueError, match=wrong):
            side.gather(ids)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        side.log_normalizer(0.0)
    with pytest.raises(ValueError, match="at least 1"):
        Blocks(rows=0)
    assert side.gather(torch.ones(5, 2, dtype=torch.int32)).shape == (5, 2)
    assert Head(torch.zeros(9, 4)).finishing == (1.0, None)
