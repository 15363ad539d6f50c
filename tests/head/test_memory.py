"""No tensor on the way grows with predictions times vocabulary, forward or backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse import divergence
from stillhouse.head import MONITORS, Blocks, Predictions, Term, rowwise_loss
from tests.head.sides import logits, predictions

N, V, D, K = 96, 60, 10, 8
BLOCKS = Blocks(rows=8, elements=240, vocabulary_tile=16)


class Recorder(TorchDispatchMode):
    """The elements of every storage that an operation makes, views not counted twice."""

    def __init__(self, *there: Tensor) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # alive, so that no address is used twice
        self.elements: list[int] = []
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._seen:
                self.kept.append(tensor)
                self._seen.add(tensor.untyped_storage().data_ptr())
                self.elements.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def recorded(function: Callable[[Predictions], Tensor]) -> list[int]:
    """The sizes of all tensors of a forward and a backward pass, the largest first."""
    side = predictions(1, N, D, V, torch.float32, softcap=5.0)
    with Recorder(side.hidden, side.head.weight) as recorder:
        function(side).sum().backward()
    assert side.hidden.grad is not None and side.head.weight.grad is not None
    return sorted(recorder.elements, reverse=True)


TERMS = [Term("ce", divergence.build("ce"), 0.5), Term("jsd", divergence.build("jsd"), 0.5)]
TEACHER = predictions(2, N, D, V, torch.float32)
PASSES: dict[str, Callable[[Predictions], Tensor]] = {
    "rowwise_loss": lambda side: rowwise_loss(side, TEACHER, TERMS, MONITORS, BLOCKS).loss,
    "log_normalizer": lambda side: side.log_normalizer(2.0, BLOCKS),
    "top_k": lambda side: side.top_k(K, BLOCKS).values,
    "gather": lambda side: side.gather(torch.arange(N * K).view(N, K) % V, BLOCKS),
}


@pytest.mark.parametrize("name", PASSES)
def test_nothing_is_as_large_as_all_logits(name: str) -> None:
    sizes = recorded(PASSES[name])
    assert sizes[0] < N * V and sizes[0] <= max(V * D, N * D)


@pytest.mark.parametrize("name", ["gather", "top_k"])
def test_a_gather_reads_few_rows_at_a_time_and_holds_one_dw(name: str) -> None:
    sizes = recorded(PASSES[name])
    assert sizes.count(V * D) == 1 and sizes[0] < N * K * D


def test_the_recorder_sees_what_it_looks_for() -> None:
    assert recorded(lambda side: logits(side).logsumexp(-1))[0] >= N * V
    whole = Blocks(rows=N, elements=N * V)
    assert recorded(lambda side: side.log_normalizer(2.0, whole))[0] >= N * V
    assert recorded(lambda side: side.gather(torch.zeros(N, K, dtype=torch.long), Blocks()))[0] >= N * K * D
