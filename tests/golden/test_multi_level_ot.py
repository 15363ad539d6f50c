"""Multi-Level OT against the numbers of its authors' code, in both of its settings, and of MCW-KD's port."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.head import Predictions
from stillhouse.methods import Clock, build
from stillhouse.methods.multi_level_ot import MultiLevelTransport
from tests.golden.cross import VALUE, both, check_gradients, counts, files, load, side
from tests.methods.two_sides import by_position


@pytest.mark.parametrize("suffix", ["", "_f2"])
@pytest.mark.parametrize("path", files("mlot_official"))
def test_the_authors_own(path: Path, suffix: str) -> None:
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    form = "official_greedy" if suffix else "official"
    method = build("multi_level_ot", form=form, kd_weight=meta["hp"]["distillation_weight"])
    terms = method(student, teacher, Clock())
    (terms.loss / len(student)).backward()
    found = {
        "total": terms.loss,
        "ce": terms.sums["ce"],
        "distill": 1.5 * terms.sums["kd"],
        "kl_raw": terms.sums["column_ce"],
        "sinkhorn_raw": terms.sums["transport"],
    }
    for name, value in found.items():
        expected = arrays[f"out_{name}{suffix}"]
        torch.testing.assert_close(value.detach() / len(student), expected, rtol=VALUE, atol=0.0)
    check_gradients(arrays, "grad_", leaves, suffix)


def rolled(hidden: Tensor, lm_head: Tensor, labels: Tensor) -> Predictions:
    """Every position of a side [B, L], turned so that the scored ones come first, as the port has them."""
    turned = torch.stack(
        [row.roll(-int((of_row != -100).int().argmax()), 0) for row, of_row in zip(hidden, labels, strict=True)]
    )
    return side(turned, lm_head, torch.zeros_like(labels))


@pytest.mark.parametrize("path", files("mlot_mcw"))
def test_the_port(path: Path) -> None:
    """The port's rows are every position, so the method is given those, and labels apart."""
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    labels, others = arrays["in_stu_label"], arrays["in_tea_label"]
    ours = rolled(leaves["stu_hidden"], leaves["stu_lm_head"], labels)
    theirs = rolled(arrays["in_tea_hidden"], arrays["in_tea_lm_head"], others)
    everywhere = counts(torch.zeros_like(labels))
    method = build("multi_level_ot", form="mcw")
    assert isinstance(method, MultiLevelTransport)
    theirs = replace(theirs, pairing=by_position(everywhere, everywhere))
    levels = method.levels(ours, theirs, method.at(Clock()))
    positions = len(ours)
    means = {
        "l1_mean": levels.l1 / positions,
        "kl_raw": levels.cross_entropy / positions,
        "sinkhorn_raw": levels.transport / positions,
    }
    kd = means["l1_mean"] + 0.1 * means["kl_raw"] + 0.1 * means["sinkhorn_raw"]
    for name, value in {**means, "kd_scalar": kd}.items():
        torch.testing.assert_close(value.detach(), arrays[f"out_{name}"], rtol=VALUE, atol=0.0)
    assert teacher.pairing is not None
    assert len(teacher.pairing) == arrays["out_n_valid_both"].item()
    ce = build("sft")(student, None, Clock()).loss
    total = (ce + meta["hp"]["kd_rate"] * kd * len(teacher.pairing)) / arrays["out_denom"].item()
    torch.testing.assert_close(total.detach(), arrays["out_total"], rtol=VALUE, atol=0.0)
    total.backward()
    check_gradients(arrays, "grad_", leaves)
