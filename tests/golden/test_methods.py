"""TAID's controller and CTKD's learnt temperature against the numbers of TAID's repository."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.divergence import Rows
from stillhouse.head import Head, Predictions
from stillhouse.methods import Clock, Method, build
from stillhouse.methods.ctkd import CurriculumTemperature, temperature_slope

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("STILLHOUSE_SHARED", REPOSITORY.parent / "shared"))
GOLDEN = Path(os.environ.get("STILLHOUSE_GOLDEN", SHARED / "golden"))

TRAJECTORIES = sorted((GOLDEN / "same_tokenizer").glob("taid_t*.npz"))
CASES = sorted((GOLDEN / "same_tokenizer").glob("case_*.npz"))
KEYS = {"tstart": "t_start", "tend": "t_end", "alpha": "alpha", "beta": "beta"}


def paths(found: list[Path], pattern: str) -> list[Any]:
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {pattern} in {GOLDEN}"), id=pattern)]


def as_predictions(logits: Tensor, labels: Tensor, positions: int = 0) -> Predictions:
    """Rows of logits as predictions: hidden states of width V under a head that is the identity."""
    head = Head(torch.eye(logits.shape[-1], dtype=logits.dtype))
    return Predictions(logits, head, labels, torch.zeros(len(labels), dtype=torch.long), positions)


@pytest.mark.parametrize("path", paths(TRAJECTORIES, "taid_t*.npz"))
def test_t_follows_the_official_trajectory(path: Path) -> None:
    """Settings are in the names: `alpha0.05_beta0.9_total5000`."""
    arrays = np.load(path)
    names = sorted({key.rpartition(".")[0] for key in arrays.files if key.endswith(".momentum")})
    assert names
    for name in names:
        settings = {KEYS[key]: float(value) for key, value in re.findall(r"(tstart|tend|alpha|beta)([\d.]+)", name)}
        total = re.search(r"total(\d+)", name)
        assert total, name
        method = build("taid", **settings, adaptive="disable_adaptive" not in name)
        assert method.t.item() == pytest.approx(arrays[f"{name}.t"][0], rel=1e-6)
        for step, loss in enumerate(arrays["losses"]):
            method.after_step({"kd": torch.tensor(float(loss))}, Clock(step, int(total[1])))
            assert method.t.item() == pytest.approx(arrays[f"{name}.t"][step + 1], rel=1e-6), (name, step)
            assert method.momentum.item() == pytest.approx(arrays[f"{name}.momentum"][step + 1], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("path", paths(TRAJECTORIES, "taid_t*.npz"))
def test_forwards_under_parity_are_the_official_ones(path: Path) -> None:
    arrays = np.load(path)
    if "forward.loss" not in arrays:
        pytest.skip(f"{path.name} has no forwards")
    kept = torch.as_tensor(arrays["forward.mask"]).bool().flatten()
    teacher = torch.as_tensor(arrays["forward.teacher"]).flatten(0, 1)[kept]
    labels = torch.zeros(len(teacher), dtype=torch.long)
    method = build("taid", alpha=0.01, beta=0.9, parity=True).train()
    for index, logits in enumerate(torch.as_tensor(arrays["forward.student_seq"])):
        student = as_predictions(logits.flatten(0, 1)[kept], labels)
        terms = method(student, as_predictions(teacher, labels), Clock(index // 2, 6))
        assert terms.loss.item() / len(labels) == pytest.approx(arrays["forward.loss"][index], rel=1e-5)
        assert method.t.item() == pytest.approx(arrays["forward.t_after"][index], rel=1e-6)


@pytest.mark.parametrize("path", paths(CASES, "case_*.npz"))
def test_the_curriculum_of_ctkd(path: Path) -> None:
    """Theirs is of T^2 times the cross-entropy, ours of T^2 KL: the teacher's entropy, differentiated here, apart."""
    arrays = np.load(path)
    labels = torch.as_tensor(arrays["labels"]).flatten()
    kept = labels != -100
    sides = [
        torch.as_tensor(arrays[name]).flatten(0, 1)[kept].double() for name in ("student_logits", "teacher_logits")
    ]
    rows = Rows(*sides, labels[kept])

    share = torch.sigmoid(torch.tensor(1.0, dtype=torch.float64)).item()

    def official_slope(temperature: float) -> Tensor:
        """d(T^2 cross-entropy)/dT of each row."""
        at = torch.full((len(labels[kept]), 1), temperature, dtype=torch.float64, requires_grad=True)
        entropy = torch.special.entr((sides[1] / at).softmax(-1)).sum(-1)
        (of_entropy,) = torch.autograd.grad((at.squeeze(-1) ** 2 * entropy).sum(), at)
        return temperature_slope(rows, temperature) + of_entropy.squeeze(-1)

    for epoch, official_reversal, temperature, _, slope_of_theta in arrays["taid_repo.ctkd_table"]:
        # The port's factor runs from 1 to 0, ours from 0 to -1: the same cosine, one below.
        method = build("ctkd")
        assert isinstance(method, CurriculumTemperature)
        assert method.temperature().item() == pytest.approx(temperature, rel=1e-6)
        assert method.reversal(Clock(epoch=epoch)) + 1.0 == pytest.approx(official_reversal, abs=1e-9)
        ours = official_reversal * 20.0 * share * (1.0 - share) * official_slope(temperature).mean().item()
        assert ours == pytest.approx(slope_of_theta, rel=1e-4, abs=1e-4)
    for key in arrays.files:
        if key.endswith("dT_per_token_ref"):
            torch.testing.assert_close(
                official_slope(1.0 + 20.0 * share), torch.as_tensor(arrays[key]), rtol=1e-6, atol=1e-6
            )
        if match := re.fullmatch(r"taid_repo\.ctkd_theta(-?[\d.]+)\.grad_theta", key):
            share_here = 1.0 / (1.0 + math.exp(-float(match[1])))
            factor = 0.5 * (1.0 + math.cos(math.pi * 0.1)) * 20.0 * share_here * (1.0 - share_here)
            ours = factor * official_slope(1.0 + 20.0 * share_here).mean().item()
            assert ours == pytest.approx(arrays[key].item(), rel=1e-4)


@pytest.mark.parametrize("path", paths(CASES, "case_*.npz"))
def test_parity_of_ctkd_and_dkd(path: Path) -> None:
    """The loss that the released code logs, from the method itself."""
    arrays = np.load(path)
    labels = torch.as_tensor(arrays["labels"]).flatten()
    kept = labels != -100
    sides = [torch.as_tensor(arrays[name]).flatten(0, 1)[kept] for name in ("student_logits", "teacher_logits")]

    def loss(method: Method) -> float:
        student, teacher = (as_predictions(side, labels[kept], positions=len(labels)) for side in sides)
        return method(student, teacher, Clock()).loss.item() / len(student)

    assert loss(build("ctkd", parity=True)) == pytest.approx(arrays["taid_repo.ctkd_epoch0.loss"].item(), rel=1e-5)
    assert loss(build("dkd", parity=True)) == pytest.approx(
        arrays["taid_repo.dkd_a1.0_b0.5_T1.0.loss"].item(), rel=1e-5
    )
    frozen = build("ctkd", parity=True)
    assert frozen.parameter_groups() == [] and not any(parameter.requires_grad for parameter in frozen.parameters())
