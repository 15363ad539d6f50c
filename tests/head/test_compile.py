"""The element-wise work through torch.compile gives what it gives eagerly, and does not compile for each row count."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse import divergence
from stillhouse.head import MONITORS, Blocks, Predictions, Term, rowwise_loss
from tests.head.sides import gradients, predictions

# A forward and a backward to compile each, which takes long; STILLHOUSE_KERNELS=all: both losses in both.
TYPES = {torch.float32: (37, 20, 11, 3), torch.bfloat16: (20, 9)}  # row counts
CASES = [("todi", torch.float32), ("skew_reverse_kl", torch.bfloat16)]
if os.environ.get("STILLHOUSE_KERNELS") == "all":
    CASES = [(name, dtype) for name, _ in CASES for dtype in TYPES]
BLOCKS = Blocks(rows=16, elements=7 * 211)  # sub-blocks of 7 rows, and of what is left


def run(terms: list[Term], student: Predictions, teacher: Predictions, blocks: Blocks) -> list[Tensor]:
    result = rowwise_loss(student, teacher, terms, {"entropy": MONITORS["entropy"]}, blocks)
    result.loss.backward()
    return [result.loss.detach(), result.values["entropy"], *gradients(student)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler itself uses what torch deprecates
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_compiled_equals_eager_for_any_number_of_rows(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    terms = [Term("kd", divergence.build(name, temperature=2.0), 0.5)]
    for index, rows in enumerate(TYPES[dtype]):
        student = predictions(1, rows, 16, 211, dtype, softcap=20.0)
        teacher = predictions(2, rows, 24, 211, dtype)
        eager = run(terms, student, teacher, BLOCKS)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            compiled = run(terms, student, teacher, replace(BLOCKS, compile=True))
        for ours, expected in zip(compiled, eager, strict=True):
            error = (ours.double() - expected.double()).norm() / expected.double().norm()
            assert error <= (1e-6 if dtype == torch.float32 else 2**-8)
    torch._dynamo.reset()


def test_compiling_is_asked_for() -> None:
    assert not Blocks().compile and not Blocks.on(torch.device("cpu")).compile
    assert Blocks.on(torch.device("meta")).rows > Blocks().rows
