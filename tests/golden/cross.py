"""The files of `cross_tokenizer/`: found, read, and as predictions of a student and of a teacher with other tokens."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.head import Head, Predictions
from tests.methods.two_sides import by_position

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("STILLHOUSE_SHARED", REPOSITORY.parent / "shared"))
GOLDEN = Path(os.environ.get("STILLHOUSE_GOLDEN", SHARED / "golden")) / "cross_tokenizer"

VALUE, GRADIENT = 1e-5, 1e-4


def files(name: str) -> list[Any]:
    """Every `<name>_*.npz` with one letter for the case, as parameters of a test; one that is skipped where none is."""
    pattern = f"{name}_[a-z].npz"
    found = sorted(GOLDEN.glob(pattern))
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {pattern} in {GOLDEN}"), id=pattern)]


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The arrays, and what `meta` says of them."""
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "meta"}
        return arrays, json.loads(str(stored["meta"]))


def scored(labels: Tensor) -> Tensor:
    """The scored positions of [B, L] shifted labels, as flat positions [N]."""
    return (labels.flatten() != -100).nonzero().squeeze(-1)


def shifted(hf_labels: Tensor) -> Tensor:
    """Hugging Face's labels [B, L + 1] as those of the predicting positions [B, L]."""
    return hf_labels[:, 1:]


def counts(labels: Tensor) -> list[int]:
    """The scored positions of each example."""
    return (labels != -100).sum(-1).tolist()


def side(hidden: Tensor, lm_head: Tensor, labels: Tensor, inputs: Tensor | None = None) -> Predictions:
    """The scored rows of one side; `hidden` [B, L, d] is followed by gradients where it wants any."""
    at = scored(labels)
    length = labels.shape[1]
    return Predictions(
        hidden[:, :length].flatten(0, 1)[at],
        Head(lm_head),
        labels.flatten()[at],
        at // length,
        labels.numel(),
        None if inputs is None else inputs[:, :length].flatten()[at],
    )


def of_logits(logits: Tensor, labels: Tensor) -> Predictions:
    """Logits [B, L, V] as hidden states under a head that is the identity."""
    return side(logits, torch.eye(logits.shape[-1], dtype=logits.dtype), labels)


def both(arrays: dict[str, Tensor]) -> tuple[Predictions, Predictions, dict[str, Tensor]]:
    """Student and teacher of a file, paired by position, and the student's leaves by the names of their gradients.

    Files of a Hugging Face loss have unshifted labels and the teacher's logits alone.
    """
    leaves = {name: arrays[f"in_{name}"].clone().requires_grad_() for name in ("stu_hidden", "stu_lm_head")}
    if "in_stu_hf_label" in arrays:
        labels, others = (shifted(arrays[f"in_{who}_hf_label"]) for who in ("stu", "tea"))
        teacher = of_logits(arrays["in_tea_logits"], others)
    else:
        labels, others = arrays["in_stu_label"], arrays["in_tea_label"]
        teacher = side(arrays["in_tea_hidden"], arrays["in_tea_lm_head"], others, arrays["in_tea_input_ids"])
    student = side(leaves["stu_hidden"], leaves["stu_lm_head"], labels, arrays["in_stu_input_ids"])
    return student, replace(teacher, pairing=by_position(counts(labels), counts(others))), leaves


def check_gradients(arrays: dict[str, Tensor], prefix: str, leaves: dict[str, Tensor], suffix: str = "") -> None:
    """`leaves[...].grad` are the arrays `<prefix><leaf><suffix>`, as far as there are any; at least one is."""
    checked = 0
    for name, leaf in leaves.items():
        expected = arrays.get(f"{prefix}{name}{suffix}")
        if expected is not None:
            assert leaf.grad is not None
            scale = expected.abs().max().item()
            torch.testing.assert_close(leaf.grad, expected, rtol=GRADIENT, atol=GRADIENT * scale)
            checked += 1
    assert checked
