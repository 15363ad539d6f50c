"""The numbers of the official implementations of these divergences: values to 1e-5, gradients to 1e-4, all in fp32.

Every file found is checked, and every array in it must be an input, a loss of `OFFICIAL`, or a loss of `LATER`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse import divergence

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("STILLHOUSE_SHARED", REPOSITORY.parent / "shared"))
GOLDEN = Path(os.environ.get("STILLHOUSE_GOLDEN", SHARED / "golden"))

VALUE, GRADIENT = 1e-5, 1e-4


@dataclass(frozen=True)
class Official:
    """One official number in our terms: a weighted sum of divergences over the scored rows, over a denominator."""

    parts: tuple[tuple[float, str, dict[str, Any]], ...]
    denominator: float | None = 1.0  # None: the number of scored rows
    by_positions: bool = False  # the denominator is the number of all rows, scored or not
    temperature: float | None = None  # None: that of the case
    entropy: float = 0.0  # how much of the teacher's entropy is in the value: 1 where KL(p||q) is written -sum p log q
    rounding: float = 0.0  # how far the official dtype may be from fp32


def mean(name: str, entropy: float = 0.0, **params: Any) -> Official:
    """Mean over scored rows at temperature 1: TAID, DistiLLM."""
    return Official(((1.0, name, params),), denominator=None, temperature=1.0, entropy=entropy)


def total(name: str, **params: Any) -> Official:
    """Sum over scored rows at the temperature of the case: ToDi, DSKD, KDFlow, DistillKit, and our own formulas."""
    return Official(((1.0, name, params),))


def curriculum(theta: float) -> Official:
    """CTKD's T^2 times cross-entropy at T = 1 + 20 sigmoid(theta)."""
    temperature = 1.0 + 20.0 / (1.0 + math.exp(-theta))
    factor = temperature**2
    return Official(((factor, "forward_kl", {}),), None, temperature=temperature, entropy=factor)


def decoupled(alpha: float, beta: float, temperature: float) -> Official:
    """TAID's DKD, over every position."""
    return Official(((1.0, "dkd", {"alpha": alpha, "beta": beta}),), by_positions=True, temperature=temperature)


TODI_NAMES = {
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
    "adaptive_kl": "adaptive_kl",
    "skewed_forward_kl": "skew_forward_kl",
    "skewed_reverse_kl": "skew_reverse_kl",
    "js_divergence": "jsd",
    "tvd": "tvd",
    "ToDi": "todi",
}

# Patterns of the names in case_*.npz, and what each is here. A number in the name is the official code's own parameter.
OFFICIAL: dict[str, Callable[..., Official]] = {
    r"taid_repo\.fkl": lambda: mean("forward_kl", entropy=1.0),
    r"taid_repo\.rkl": lambda: mean("reverse_kl"),
    r"taid_repo\.tvd": lambda: mean("tvd"),
    r"taid_repo\.js_w([\d.]+)": lambda teacher_weight: mean("jsd", beta=teacher_weight),
    r"taid_repo\.adaptive_kl_([\d.]+)": lambda mu: mean("adaptive_kl", mu=mu, taid_port=True),
    r"taid_repo\.sfkl_([\d.]+)": lambda lam: mean("skew_forward_kl", entropy=1.0, lam=lam),
    r"taid_repo\.srkl_([\d.]+)": lambda lam: mean("skew_reverse_kl", lam=lam),
    r"taid_repo\.taid_t([\d.]+)": lambda t: mean("taid", t=t),
    r"taid_repo\.taid_t([\d.]+)_bf16": lambda t: replace(mean("taid", t=t), rounding=2e-2),
    r"taid_repo\.dkd_a([\d.]+)_b([\d.]+)_T([\d.]+)": decoupled,
    r"taid_repo\.ctkd_epoch\d+": lambda: curriculum(1.0),
    r"taid_repo\.ctkd_theta(-?[\d.]+)": curriculum,
    r"distillm\.forward_kl": lambda: mean("forward_kl", entropy=1.0),
    r"distillm\.reverse_kl": lambda: mean("reverse_kl"),
    r"distillm\.tv_distance": lambda: mean("tvd"),
    r"distillm\.js_distance_lam([\d.]+)": lambda student_weight: mean("jsd", beta=1.0 - student_weight),
    r"distillm\.skewed_forward_kl_([\d.]+)": lambda lam: mean("skew_forward_kl", entropy=1.0, lam=lam),
    r"distillm\.skewed_reverse_kl_([\d.]+)": lambda lam: mean("skew_reverse_kl", lam=lam),
    r"distillm\.symmetric_kl_([\d.]+)": lambda lam: replace(
        mean("", entropy=1.0 - lam), parts=((1.0 - lam, "forward_kl", {}), (lam, "reverse_kl", {}))
    ),
    r"todi_repo\.ce_sum": lambda: total("cross_entropy"),
    r"todi_repo\.total_(\w+)_kd([\d.]+)_denom([\d.]+)": lambda name, kd, denominator: Official(
        ((1.0 - kd, "cross_entropy", {}), (kd, TODI_NAMES[name], {})), denominator
    ),
    r"todi_repo\.(\w+?)(?:_sum)?": lambda name: total(TODI_NAMES[name]),
    r"trl\.gkd_jsd_beta([\d.]+)_T([\d.]+)": lambda beta, temperature: replace(
        mean("jsd", beta=beta), temperature=temperature
    ),
    r"kdflow\.kl_sum": lambda: total("forward_kl"),
    r"kdflow\.rkl_sum": lambda: total("reverse_kl"),
    r"kdflow\.jsd_sum": lambda: total("jsd", beta=1.0 - 0.3),  # its jsd_beta is the student's weight
    r"kdflow\.skl_sum": lambda: total("skew_forward_kl"),
    r"kdflow\.srkl_sum": lambda: total("skew_reverse_kl"),
    r"kdflow\.akl_sum": lambda: total("adaptive_kl"),
    r"kdflow\.tvd_sum": lambda: total("tvd"),
    r"distillkit\.dense_jsd_sum": lambda: total("jsd"),
    r"distillkit\.dense_kl_sum": lambda: total("forward_kl"),
    r"distillkit\.dense_tvd_sum": lambda: total("tvd"),
    r"canon\.ce": lambda: total("cross_entropy"),
    r"canon\.fkl": lambda: total("forward_kl"),
    r"canon\.rkl": lambda: total("reverse_kl"),
    r"canon\.jsd_b(\d+_\d+)": lambda beta: total("jsd", beta=beta),
    r"canon\.tvd": lambda: total("tvd"),
    r"canon\.sfkl": lambda: total("skew_forward_kl"),
    r"canon\.srkl": lambda: total("skew_reverse_kl"),
    r"canon\.srkl_detached": lambda: total("skew_reverse_kl", detach_mixture=True),
    r"canon\.akl": lambda: total("adaptive_kl"),
    r"canon\.todi": lambda: total("todi"),
    r"canon\.todi_scale(\d+)": lambda scale: total("todi", scale=scale),
    r"canon\.taid_t(\d+_\d+)": lambda t: replace(total("taid", t=t), temperature=1.0),
    r"canon\.dkd": lambda: total("dkd", alpha=1.0, beta=2.0),
}

# Ranks and top-1 targets; and what test_methods.py and test_on_policy.py compare.
LATER = re.compile(
    r"distillm2\.|minillm\.|kdflow\.(top1_ce|hrl)|taid_repo\.ctkd_(table|.*\.(grad_theta|dT_per_token_ref))$"
)

# edge.json names its losses more shortly.
EDGE: dict[str, Callable[..., Official]] = {
    r"taid\.fkl": lambda: mean("forward_kl", entropy=1.0),
    r"taid\.rkl": lambda: mean("reverse_kl"),
    r"taid\.tvd": lambda: mean("tvd"),
    r"taid\.js": lambda: mean("jsd", beta=0.1),
    r"taid\.akl": lambda: mean("adaptive_kl", taid_port=True),
    r"taid\.sfkl": lambda: mean("skew_forward_kl", entropy=1.0),
    r"taid\.srkl": lambda: mean("skew_reverse_kl"),
    r"taid\.taid_t([\d.]+)": lambda t: mean("taid", t=t),
    r"taid\.dkd": lambda: decoupled(1.0, 0.5, 1.0),
    r"taid\.ctkd": lambda: curriculum(1.0),
    r"todi\.(\w+)": lambda name: total(TODI_NAMES[name]),
    r"trl\.jsd([\d.]+)": lambda beta: mean("jsd", beta=beta),
}


def official(table: dict[str, Callable[..., Official]], name: str) -> Official | None:
    """What `name` is in our terms; None for a loss of `LATER`; a failure for a name that nobody knows."""
    if LATER.match(name):
        return None
    for pattern, build in table.items():
        if match := re.fullmatch(pattern, name):
            return build(*(number(group) for group in match.groups()))
    pytest.fail(f"nobody knows the loss {name}")


def number(text: str) -> float | str:
    text = text.replace("_", ".") if re.fullmatch(r"\d+_\d+", text) else text
    return float(text) if re.fullmatch(r"-?[\d.]+", text) else text


@dataclass
class Case:
    """Inputs [B, L, V] and [B, L], flattened, and the official arrays by name."""

    student: Tensor  # [R, V]
    teacher: Tensor  # [R, V]
    labels: Tensor  # [R]
    temperature: float
    arrays: dict[str, np.ndarray]

    @property
    def scored(self) -> Tensor:
        return self.labels != -100  # [R]

    def rowwise(self, loss: Official, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum of divergences at the kept rows: [N], and its gradient [N, V]."""
        student = self.student[keep].requires_grad_()
        teacher, labels = self.teacher[keep], self.labels[keep]
        temperature = loss.temperature or self.temperature
        values = torch.zeros(len(labels))
        for weight, name, params in loss.parts:
            if name == "cross_entropy":
                values = values + weight * divergence.build(name)(student, None, labels)
            else:
                loss_of = divergence.build(name, temperature=temperature, **params)
                values = values + weight * loss_of(student, teacher, labels if loss_of.needs_labels else None)
        (gradient,) = torch.autograd.grad(values.sum(), student)
        if loss.entropy:
            p = (teacher / temperature).softmax(-1)
            terms = torch.special.xlogy(p, p).masked_fill(torch.isinf(student.detach()), 0.0)
            values = values - loss.entropy * terms.sum(-1)
        return values.detach(), gradient

    def scalar(self, loss: Official) -> tuple[float, Tensor]:
        """The official scalar, and its gradient at every row: [R, V]."""
        values, gradient = self.rowwise(loss, self.scored)
        denominator = float(len(self.labels)) if loss.by_positions else loss.denominator or float(self.scored.sum())
        whole = torch.zeros_like(self.student)
        whole[self.scored] = gradient / denominator
        return values.sum().item() / denominator, whole


def same_values(ours: Tensor | float, theirs: np.ndarray | float, rounding: float = 0.0) -> None:
    ours, wanted = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    torch.testing.assert_close(ours.reshape(wanted.shape), wanted, rtol=rounding or VALUE, atol=0.1 * VALUE)


def same_gradient(ours: Tensor, theirs: np.ndarray, rounding: float = 0.0) -> None:
    """Each row within 1e-4 of its own largest entry, and a little for rows where student and teacher almost agree."""
    wanted = torch.as_tensor(theirs).double().reshape(ours.shape)
    size = wanted.abs().amax(-1)  # [R]
    allowed = (rounding or GRADIENT) * (
        size + 0.1 * size.max()
    ) + 1e-8  # fp32 rounds a probability by 6e-8; N is 8 or more
    assert (ours - wanted).abs().amax(-1).le(allowed).all()


def names(pattern: str) -> list[Any]:
    """Files to check; where there are none, a single skip that says so."""
    found = sorted(GOLDEN.glob(pattern))
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {pattern} in {GOLDEN}"), id=pattern)]


@cache
def same_tokenizer(path: Path) -> Case:
    arrays = dict(np.load(path))
    inputs = [torch.as_tensor(arrays.pop(name)) for name in ("student_logits", "teacher_logits", "labels")]
    arrays.pop("mask", None)
    meta = path.with_suffix(".json")
    temperature = json.loads(meta.read_text())["T"] if meta.exists() else 1.0
    return Case(inputs[0].flatten(0, 1), inputs[1].flatten(0, 1), inputs[2].flatten(), temperature, arrays)


@pytest.mark.parametrize("path", names("same_tokenizer/case_*.npz"))
def test_same_tokenizer_losses(path: Path):
    case, checked = same_tokenizer(path), 0
    for key, array in case.arrays.items():
        if LATER.match(key):
            continue
        name, _, kind = key.rpartition(".")
        loss = official(OFFICIAL, name)
        assert loss is not None
        checked += 1
        if kind == "loss":
            same_values(case.scalar(loss)[0], array, loss.rounding)
        elif kind == "grad":
            same_gradient(case.scalar(loss)[1], array, 5 * loss.rounding)
        elif kind == "per_token":
            # canon has scored rows only; the ToDi repository every row, those without a label too
            rows = case.scored if name.startswith("canon.") else torch.ones_like(case.scored)
            same_values(case.rowwise(loss, rows)[0], array)
        else:
            assert kind == "grad_per_token", key
            same_gradient(case.rowwise(loss, case.scored)[1], array)
    assert checked >= 90


# The names in divergences_*.npz (DSKD's VariousDivergence), and the settings that its meta gives.
DSKD_NAMES = {**TODI_NAMES, "js": "jsd", "ce": "cross_entropy"}


@pytest.mark.parametrize("path", names("cross_tokenizer/divergences_*.npz"))
def test_dskd_losses(path: Path):
    arrays = dict(np.load(path))
    meta = json.loads(str(arrays.pop("meta")))
    inputs = [torch.as_tensor(arrays.pop(f"in_{name}")) for name in ("stu_logits", "tea_logits", "stu_label")]
    temperature = meta["hp"]["kd_temperature"]
    case = Case(inputs[0].flatten(0, 1), inputs[1].flatten(0, 1), inputs[2].flatten(), temperature, arrays)
    settings = {
        "skew_forward_kl": {"lam": meta["skew_lambda"]},
        "skew_reverse_kl": {"lam": meta["skew_lambda"]},
        "adaptive_kl": {"mu": meta["adaptive_kl_alpha"]},
    }
    for key, array in case.arrays.items():
        if key == "out_accuracy_sum":
            rows = divergence.Rows(case.student[case.scored], labels=case.labels[case.scored])
            assert rows.accuracy().sum() == array
            continue
        match = re.fullmatch(r"out_(?P<name>\w+)_(?P<kind>sum|none)|grad_stu_logits_(?P<of>\w+)", key)
        assert match, f"nobody knows {key}"
        name = DSKD_NAMES[match["name"] or match["of"]]
        loss = total(name, **settings.get(name, {}))
        if match["kind"] == "sum":
            same_values(case.scalar(loss)[0], array)
        elif match["kind"] == "none":
            same_values(case.rowwise(loss, torch.ones_like(case.scored))[0], array)
        else:
            same_gradient(case.scalar(loss)[1], array)
    assert len(case.arrays) >= 20


def edges() -> list[tuple[str, str, str]]:
    path = GOLDEN / "same_tokenizer" / "edge.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return [(*key.split("/"), value) for key, (value, _) in found.items()]  # pyright: ignore[reportReturnType]


def test_edge_cases(golden: Path):
    """Finite values and gradients everywhere, and the official value wherever that is a number."""
    checked = 0
    for scenario, name, value in edges():
        loss = official(EDGE, name)
        if loss is None:
            continue
        ours, gradient = same_tokenizer(golden / "same_tokenizer" / f"edge_{scenario}.npz").scalar(loss)
        assert math.isfinite(ours), (scenario, name)
        assert gradient.isfinite().all(), (scenario, name)
        if math.isfinite(float(value)):
            checked += 1
            same_values(ours, float(value))
    assert checked >= 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", names("same_tokenizer/edge_*.npz"))
def test_every_divergence_is_finite_on_the_edge_cases(path: Path, dtype: torch.dtype):
    case = same_tokenizer(path)
    rows = divergence.Rows(case.student[case.scored].to(dtype), case.teacher[case.scored].to(dtype))
    for name in TODI_NAMES.values():
        for temperature in (0.5, 1.0, 2.0):
            values, gradient = divergence.build(name, temperature=temperature).value_and_gradient(rows)
            assert values.isfinite().all(), name
            assert gradient.isfinite().all(), name


def test_a_loss_that_nobody_knows_is_a_failure():
    with pytest.raises(pytest.fail.Exception, match=r"nobody knows the loss distillkit\.new"):
        official(OFFICIAL, "distillkit.new")
    assert official(OFFICIAL, "distillm2.gkd") is None
