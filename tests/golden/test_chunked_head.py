"""TRL's chunked divergence of hidden states and heads: its losses to 1e-5, its gradients to 1e-4, in fp32."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse import divergence
from stillhouse.head import Blocks, Head, Predictions, Term, rowwise_loss

INPUTS = {"h_s", "h_t", "W_s", "W_t", "mask"}
TEMPERATURE = 1.5


@pytest.mark.parametrize("blocks", [None, Blocks(rows=3, elements=100, vocabulary_tile=7)])
def test_loss_and_gradients_are_trls(golden: Path, blocks: Blocks | None) -> None:
    files = sorted(golden.rglob("trl_chunked_*.npz"))
    assert files, f"no trl_chunked_*.npz below {golden}"
    for file in files:
        arrays = dict(np.load(file))
        betas = sorted({found[1] for name in arrays if (found := re.fullmatch(r"b([\d.]+)\.loss", name))})
        known = INPUTS | {f"b{beta}.{what}" for beta in betas for what in ("loss", "grad_h", "grad_W")}
        assert betas and arrays.keys() == known
        for beta in betas:
            check({name: torch.from_numpy(array) for name, array in arrays.items()}, beta, blocks)


def check(arrays: dict[str, torch.Tensor], beta: str, blocks: Blocks | None) -> None:
    scored = arrays["mask"].bool()  # [B, L]
    hidden, weight = arrays["h_s"].clone().requires_grad_(), arrays["W_s"].clone().requires_grad_()
    labels = torch.zeros(int(scored.sum()), dtype=torch.long)
    student = Predictions(hidden[scored], Head(weight), labels, labels)
    teacher = Predictions(arrays["h_t"][scored], Head(arrays["W_t"]), labels, labels)
    terms = [Term("kd", divergence.build("jsd", beta=float(beta), temperature=TEMPERATURE))]
    loss = rowwise_loss(student, teacher, terms, blocks=blocks).loss / len(labels)
    loss.backward()
    torch.testing.assert_close(loss.detach(), arrays[f"b{beta}.loss"], rtol=1e-5, atol=1e-7)
    assert hidden.grad is not None and weight.grad is not None
    torch.testing.assert_close(hidden.grad, arrays[f"b{beta}.grad_h"], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(weight.grad, arrays[f"b{beta}.grad_W"], rtol=1e-4, atol=1e-7)
