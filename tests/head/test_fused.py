"""The compiled kernels against `evaluate` in fp64 on the same rounded logits."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from stillhouse import divergence
from stillhouse.catalogue import DIVERGENCES
from stillhouse.divergence.taid import InterpolatedTarget
from stillhouse.head.elementwise import MONITORS, Elementwise, Term, evaluate
from stillhouse.head.fused import fused, supports
from stillhouse.head.lm_head import Finish
from tests.divergence.twins import SETTINGS, SomeRows

pytest.importorskip("numba")


def slow_but(first: Any, *others: Any) -> list[Any]:
    """`first` always, the others in the slow set."""
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


SORTING = ("uld",)  # has no kernel: its time is the sort's
FUSED = [(name, params) for name, params in SETTINGS if not params.get("taid_port") and name not in SORTING]
TEMPERATURES = slow_but(2.0, 0.5, 1.0, 7.0)
every_setting = pytest.mark.parametrize(("name", "params"), FUSED)
LAST_OF_EACH = {name: (name, params) for name, params in FUSED}
one_of_each = pytest.mark.parametrize(("name", "params"), list(LAST_OF_EACH.values()))
# Every loss and every pair of dtypes has a kernel of its own, which takes seconds to compile. These have a row function
# of their own, or are of those that share one: how a row is read and written is theirs, and the rest are in fp32 only.
# STILLHOUSE_KERNELS=all: every loss in everything.
ALL = os.environ.get("STILLHOUSE_KERNELS") == "all"
ROWS = tuple(LAST_OF_EACH) if ALL else ("cross_entropy", "forward_kl", "adaptive_kl", "taid", "dkd")
UNLIKE = [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
MIXED = [
    (*LAST_OF_EACH[name], dtypes)
    for number, name in enumerate(ROWS)
    for dtypes in (UNLIKE if ALL else [UNLIKE[number % 2]])
]


def stored_as(name: str) -> torch.dtype:
    """How the sides of a loss are stored in tests of one dtype."""
    return torch.bfloat16 if name in ROWS else torch.float32


TYPED = [(*case, stored_as(case[0])) for case in FUSED]
TYPED += [pytest.param(*case, torch.float32, marks=pytest.mark.slow) for case in FUSED if case[0] in ROWS]


def work_of(
    name: str, params: dict[str, Any], temperature: float, ce: float | None = 0.3, scales: tuple[float, float] = (1, 1)
) -> Elementwise:
    terms = [] if ce is None else [Term("ce", divergence.build("ce"), ce)]
    if name == "cross_entropy":
        terms = [Term("ce", divergence.build("ce"), ce or 1.0)]
    else:
        terms.append(Term("kd", divergence.build(name, temperature=temperature, **params), 0.7))
    monitors = tuple(MONITORS.values())
    return Elementwise(tuple(terms), monitors, Finish(scales[0]), Finish(scales[1]), wants_gradient=True)


def sizes(work: Elementwise, rows: SomeRows) -> tuple[float, float]:
    """The largest value and the largest gradient of the KL divergences in the same work."""
    kd = next((term for term in work.terms if term.name == "kd"), None)
    values, slopes = [torch.zeros(len(rows.labels), dtype=torch.float64)], []
    for name in ("forward_kl", "reverse_kl"):
        terms = work.terms
        if kd is not None:
            other = replace(kd, divergence=divergence.build(name, temperature=kd.divergence.temperature))
            terms = tuple(other if term is kd else term for term in terms)
        found, gradient = evaluate(replace(work, terms=terms), rows.student, rows.teacher, rows.labels)
        values += found
        assert gradient is not None
        slopes.append(gradient.abs().max().item())
    return torch.stack(values).abs().max().item(), max(slopes)


def conditioning(work: Elementwise) -> float:
    """How many times more than in a KL divergence a rounding counts: DKD has a factor, and a steep sigmoid is one."""
    loss: Any = work.terms[-1].divergence
    if loss.name == "dkd":
        return max(1.0, loss.temperature**2 * max(loss.alpha, loss.beta))
    return max(1.0, loss.scale / 10.0) if loss.name == "todi" else 1.0


def compare(
    work: Elementwise, rows: SomeRows, dtypes: tuple[torch.dtype, torch.dtype], tolerance: float = 1e-6
) -> None:
    student, teacher = rows.student.to(dtypes[0]), rows.teacher.to(dtypes[1])
    assert supports(work, student, teacher)
    exact = SomeRows(student.double(), teacher.double(), rows.labels)
    wanted, wanted_gradient = evaluate(work, exact.student, exact.teacher, rows.labels)
    values, gradient = fused(work, student, teacher, rows.labels)
    assert wanted_gradient is not None and gradient is not None
    assert gradient.data_ptr() == student.data_ptr() and gradient.dtype == dtypes[0]
    size, slope = (conditioning(work) * size for size in sizes(work, exact))
    for value, exactly in zip(values, wanted, strict=True):
        assert value.dtype == torch.float32
        assert (value - exactly).abs().max() <= tolerance * max(size, exactly.abs().max().item())
    # By cancellation a gradient is less exact than its parts, and at T below 1 these are larger than it.
    error = 2.0 * tolerance * max(slope, wanted_gradient.abs().max().item())
    # Rounding is monotone, so what is within `error` is within this once it is rounded.
    least, most = ((wanted_gradient + sign * error).to(dtypes[0]) for sign in (-1.0, 1.0))
    assert ((gradient >= least) & (gradient <= most)).all()


@pytest.mark.parametrize(("name", "params", "dtype"), TYPED)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_values_and_gradients_are_those_of_evaluate(name, params, temperature, dtype) -> None:
    for seed, vocabulary in enumerate((1, 2, 17, 1000)):
        rows = SomeRows.draw(seed, 4, vocabulary, likeness=0.5)
        compare(work_of(name, params, temperature), rows, (dtype, dtype))
        compare(work_of(name, params, temperature, ce=None, scales=(0.25, 1.7)), rows, (dtype, dtype))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "params", "dtypes"), MIXED)
def test_the_sides_may_differ_in_dtype(name, params, dtypes) -> None:
    compare(work_of(name, params, 2.0), SomeRows.draw(7, 3, 600), dtypes)


@one_of_each
def test_a_real_vocabulary(name, params) -> None:
    dtype = stored_as(name)
    compare(work_of(name, params, 2.0), SomeRows.draw(8, 2, 50_257, likeness=0.5), (dtype, dtype))


@every_setting
@pytest.mark.parametrize("hole", slow_but(-torch.inf, torch.inf, torch.nan))
def test_a_row_with_a_logit_that_is_not_finite_is_the_same_as_by_evaluate(name, params, hole) -> None:
    rows = SomeRows.draw(3, 6, 700, dtype=torch.float32)
    rows.student[1, 650] = rows.teacher[4, 3] = hole
    work = work_of(name, params, 2.0)
    wanted, wanted_gradient = evaluate(work, rows.student.clone(), rows.teacher, rows.labels)
    values, gradient = fused(work, rows.student.clone(), rows.teacher, rows.labels)
    assert wanted_gradient is not None and gradient is not None
    at = [1] if name == "cross_entropy" else [1, 4]
    for value, exactly in zip([*values, gradient], [*wanted, wanted_gradient], strict=True):
        torch.testing.assert_close(value[at], exactly[at], rtol=1e-5, atol=1e-9, equal_nan=True)
        torch.testing.assert_close(value, exactly, rtol=1e-4, atol=1e-5, equal_nan=True)


@every_setting
@pytest.mark.parametrize("gap", slow_but(150.0, 30.0, 1e4))
def test_logits_far_apart(name, params, gap) -> None:
    rows = SomeRows.draw(4, 4, 300, dtype=torch.float32)
    rows.student[:, :40] += gap
    rows.teacher[:2, 20:60] += gap
    rows.teacher[2:, 50] -= gap
    rows.labels[0] = 250
    work = work_of(name, params, 1.0)
    if params.get("mu") == 0.0:  # there fp32 finds other probabilities to be 0 than fp64 does: `evaluate` decides
        wanted, _ = evaluate(work, rows.student.clone(), rows.teacher, rows.labels)
        torch.testing.assert_close(fused(work, rows.student, rows.teacher, rows.labels)[0], wanted)
        return
    # TAID's target is a sum of logits, rounded as they are.
    compare(work, rows, (torch.float32, torch.float32), 1e-6 if name != "taid" else 1e-7 * gap)


@every_setting
def test_a_teacher_that_is_the_student(name, params) -> None:
    logits = SomeRows.draw(5, 3, 900, dtype=torch.float32)
    work = work_of(name, params, 2.0, ce=None)
    values, gradient = fused(work, logits.student.clone(), logits.student, logits.labels)
    wanted, wanted_gradient = evaluate(work, logits.student.double(), logits.student.double(), logits.labels)
    torch.testing.assert_close(values[0].double(), wanted[0], rtol=1e-6, atol=3e-7)
    torch.testing.assert_close(gradient, wanted_gradient, check_dtype=False, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("mu", [0.0, 0.2, 0.5, 0.99])
def test_of_equal_probabilities_at_the_cut_the_head_has_the_highest_ids(mu) -> None:
    rows = SomeRows.draw(6, 8, 500)
    teacher = rows.teacher.round()  # a few values, each many times
    compare(work_of("adaptive_kl", {"mu": mu}, 2.0), replace(rows, teacher=teacher), (torch.float32, torch.float32))


def test_the_first_of_equal_logits_is_the_likeliest() -> None:
    student = torch.full((2, 1300), -1.0)
    student[0, 900] = student[0, 1100] = 2.0
    student[1] = -0.0
    student[1, 700] = 0.0  # equals -0
    values, _ = fused(work_of("cross_entropy", {}, 1.0), student, student.clone(), torch.tensor([900, 0]))
    assert values[2].tolist() == [1.0, 1.0]


@one_of_each
def test_threads_change_nothing(name, params) -> None:
    rows = SomeRows.draw(9, 7, 1500, dtype=stored_as(name))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values, gradient = fused(work_of(name, params, 2.0), rows.student.clone(), rows.teacher, rows.labels)
            assert gradient is not None
            found.append([*values, gradient])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_without_a_gradient_the_product_is_left_as_it_is() -> None:
    rows = SomeRows.draw(10, 3, 50, dtype=torch.float32)
    work = replace(work_of("forward_kl", {}, 2.0), wants_gradient=False)
    before = rows.student.clone()
    values, gradient = fused(work, rows.student, rows.teacher, rows.labels)
    assert gradient is None and len(values) == 6
    assert torch.equal(rows.student, before)


def test_a_block_without_rows() -> None:
    values, gradient = fused(work_of("jsd", {}, 2.0), torch.empty(0, 9), torch.empty(0, 9), torch.empty(0).long())
    assert [len(value) for value in values] == [0] * 6
    assert gradient is not None and gradient.shape == (0, 9)


def test_without_a_teacher() -> None:
    rows = SomeRows.draw(11, 3, 90)
    monitors = (MONITORS["ce"], MONITORS["entropy"])
    work = replace(work_of("cross_entropy", {}, 1.0), monitors=monitors, teacher=None)
    student = rows.student.float()
    assert supports(work, student, None)
    wanted, wanted_gradient = evaluate(work, student.double(), None, rows.labels)
    values, gradient = fused(work, student, None, rows.labels)
    torch.testing.assert_close(torch.stack(values).double(), torch.stack(wanted), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient, check_dtype=False, rtol=1e-6, atol=1e-7)


def test_labels_out_of_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="token ids from 0 to 4"):
        fused(work_of("jsd", {}, 2.0), torch.zeros(2, 5), torch.zeros(2, 5), torch.tensor([0, 5]))


def test_a_share_of_the_teacher_may_be_a_tensor() -> None:
    rows = SomeRows.draw(12, 3, 90)
    compare(work_of("taid", {"t": 0.4}, 2.0), rows, (torch.float32, torch.float32))
    work = work_of("taid", {"t": 0.4}, 2.0)
    kd = replace(work.terms[1], divergence=InterpolatedTarget(2.0, torch.tensor(0.4)))
    found = [
        fused(replace(work, terms=(work.terms[0], term)), rows.student.float(), rows.teacher.float(), rows.labels)
        for term in (work.terms[1], kd)
    ]
    assert torch.equal(found[0][0][1], found[1][0][1])


def test_what_is_not_supported() -> None:
    z = torch.zeros(2, 5)
    work = work_of("forward_kl", {}, 2.0)
    assert supports(work, z, z)
    assert not supports(work, z.double(), z)
    assert not supports(work, z.half(), z)
    assert not supports(work, z, None)
    assert not supports(work, z.to("meta"), z)
    assert not supports(work, torch.zeros(5, 2).T, z)
    assert not supports(replace(work, student=Finish(1.0, 30.0)), z, z)
    assert not supports(replace(work, terms=(*work.terms, work.terms[1])), z, z)
    assert not supports(replace(work, monitors=(lambda rows: rows.entropy(),)), z, z)
    assert not supports(work_of("adaptive_kl", {"taid_port": True}, 1.0), z, z)
    own = divergence.from_function(lambda student, teacher, labels: student.square().sum(-1))
    assert not supports(replace(work, terms=(Term("kd", own),)), z, z)


def test_every_divergence_that_needs_no_sort_has_a_kernel() -> None:
    z = torch.zeros(2, 5)
    for name in DIVERGENCES:
        assert supports(work_of(name, {}, 1.0), z, z) == (name not in SORTING)


def test_numba_is_not_imported_with_the_head() -> None:
    """In a fork, which forgets the package and need not import torch again."""
    if (child := os.fork()) == 0:
        code = 2
        try:
            for name in [name for name in sys.modules if name.partition(".")[0] == "stillhouse"]:
                del sys.modules[name]
            importlib.import_module("stillhouse.head.fused")
            code = int("stillhouse.head.fused_blocks" in sys.modules)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
