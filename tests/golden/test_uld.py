"""ULD against the numbers of DSKD, of MCW-KD and of its authors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse.methods import Clock, build
from tests.golden.cross import VALUE, both, check_gradients, files, load


@pytest.mark.parametrize("form", ["dskd", "mcw"])
@pytest.mark.parametrize("path", files("uld"))
def test_the_ports(path: Path, form: str) -> None:
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    terms = build("uld", form=form, kd_weight=meta["hp"]["kd_rate"])(student, teacher, Clock())
    count = arrays["out_denom"].item()
    assert count == len(student)
    (terms.loss / count).backward()
    found = {"total": terms.loss, "uld_loss": terms.sums["kd"], "nll_loss": terms.sums["ce"]}
    for name, value in found.items():
        expected = arrays[f"out_{form}_{name}"]
        torch.testing.assert_close(value.detach() / count, expected, rtol=VALUE, atol=0.0, check_dtype=False)
    if form == "dskd":
        check_gradients(arrays, f"grad_{form}_", leaves)


@pytest.mark.parametrize("path", files("uld_official"))
def test_the_authors_own(path: Path) -> None:
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    method = build("uld", form="official", kd_weight=meta["hp"]["distillation_weight"])
    terms = method(student, teacher, Clock())
    loss = terms.loss / len(student)
    loss.backward()
    torch.testing.assert_close(loss.detach(), arrays["out_total"], rtol=VALUE, atol=0.0)
    distance = 1.5 * terms.sums["kd"] / len(student)
    torch.testing.assert_close(distance, arrays["out_distill"], rtol=VALUE, atol=0.0)
    check_gradients(arrays, "grad_", leaves)
