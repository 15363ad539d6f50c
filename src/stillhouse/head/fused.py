"""The element-wise half of a row loss on CPU, in compiled kernels: `elementwise.evaluate` at a tenth of its time.

`supports` tells whether it can, `fused` does it, a whole block of rows at a time and in place. Rows with a logit that
is not finite go through `evaluate`. Numba is imported when the first block comes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from stillhouse.divergence.adaptive import AdaptiveKL
from stillhouse.divergence.dkd import Decoupled
from stillhouse.divergence.kl import CrossEntropy, ForwardKL, ReverseKL, TotalVariation
from stillhouse.divergence.mixtures import JensenShannon, SkewForwardKL, SkewReverseKL
from stillhouse.divergence.rows import Rows, check_labels
from stillhouse.divergence.taid import InterpolatedTarget
from stillhouse.divergence.todi import ToDi
from stillhouse.head.elementwise import Elementwise, evaluate

_DTYPES = (torch.float32, torch.bfloat16)
_MONITORS = (Rows.cross_entropy, Rows.accuracy, Rows.agreement, Rows.entropy)  # in the order of the kernels' columns
_KNOWN = (
    ForwardKL, ReverseKL, TotalVariation, JensenShannon, SkewForwardKL, SkewReverseKL, ToDi, InterpolatedTarget,
    Decoupled, AdaptiveKL,
)  # fmt: skip


def supports(work: Elementwise, product: Tensor, teacher_product: Tensor | None) -> bool:
    """Whether `fused` can do this work, exactly as `evaluate` does it."""
    sides = [(work.student, product)]
    if work.teacher is not None and teacher_product is not None:
        sides.append((work.teacher, teacher_product))
    divergences = [term.divergence for term in work.terms if type(term.divergence) is not CrossEntropy]
    return (
        all(finish.softcap is None and _readable(side, product) for finish, side in sides)
        and len(divergences) <= 1
        and len(work.terms) - len(divergences) <= 1
        and all(type(divergence) in _KNOWN for divergence in divergences)
        and not any(isinstance(divergence, AdaptiveKL) and divergence.taid_port for divergence in divergences)
        and not any(isinstance(getattr(divergence, "lam", None), Tensor) for divergence in divergences)
        and (len(sides) == 2 or not (divergences or Rows.agreement in work.monitors))
        and all(monitor in _MONITORS for monitor in work.monitors)
        and _has_numba()
    )


def fused(
    work: Elementwise, product: Tensor, teacher_product: Tensor | None, labels: Tensor
) -> tuple[list[Tensor], Tensor | None]:
    """`evaluate` of a whole block, whose gradient is written over `product`; only where it `supports` the work.

    Args:
        product: [B, V]; the gradient afterwards, in its own dtype, unless no gradient is wanted.
        teacher_product: [B, V] or None.
        labels: [B]
    """
    check_labels(labels, product.shape[-1])
    if work.teacher is None:
        teacher_product = None
    table, done = _run(work, product.detach(), teacher_product, labels.long().contiguous())  # [B, columns], [B]
    values = [table[:, column].float() for column in _columns(work)]
    if not bool(done.all()):
        _redo(work, product, teacher_product, labels, values, (~done).nonzero().squeeze(-1))
    return values, product if work.wants_gradient and work.terms else None


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


def _readable(side: Tensor, product: Tensor) -> bool:
    return (
        side.device.type == "cpu"
        and side.dtype in _DTYPES
        and side.is_contiguous()
        and side.ndim == 2
        and side.shape == product.shape
        and side.shape[-1] > 0
    )


def _columns(work: Elementwise) -> Iterator[int]:
    """Where in the kernel's table each term and monitor is."""
    for term in work.terms:
        yield 1 if type(term.divergence) is CrossEntropy else 0
    for monitor in work.monitors:
        yield 1 + _MONITORS.index(monitor)


def _redo(
    work: Elementwise, product: Tensor, teacher_product: Tensor | None, labels: Tensor, values: list[Tensor], at: Tensor
) -> None:
    """The rows `at` by `evaluate`, into `values` and `product`; a few at a time, as it takes memory."""
    for some in at.split(max(1, 800_000 // product.shape[-1])):
        theirs = None if teacher_product is None else teacher_product[some]
        found, gradient = evaluate(work, product[some], theirs, labels[some])
        for value, part in zip(values, found, strict=True):
            value[some] = part
        if gradient is not None:
            product[some] = gradient.to(product.dtype)


def _run(work: Elementwise, product: Tensor, teacher_product: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's table of values [B, columns] and which rows it did [B]; torch's threads share the rows."""
    from stillhouse.head import fused_blocks  # imports numba

    rows, width = product.shape
    table = np.zeros((rows, fused_blocks.COLUMNS))
    done = np.zeros(rows, dtype=np.bool_)
    z = stored(product)
    y = z if teacher_product is None else stored(teacher_product.detach())
    ids, loss, task = labels.numpy(), _loss(work), _task(work)

    def run(part: slice) -> None:
        room = _room(width, loss, task.at_one)
        fused_blocks.block(loss, z[part], y[part], ids[part], task, room, table[part], done[part])

    shared_out(rows, run)
    return torch.from_numpy(table), torch.from_numpy(done)


def shared_out(rows: int, run: Callable[[slice], None]) -> None:
    """Call `run` on slices that cover `rows`, one for each of torch's threads, at the same time."""
    threads = min(torch.get_num_threads(), rows)
    parts = [slice(rows * thread // threads, rows * (thread + 1) // threads) for thread in range(threads)]
    waiting = [_pool(os.getpid()).submit(run, part) for part in parts[1:]]
    for part in parts[:1]:
        run(part)
    for part in waiting:
        part.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads beside the caller's; those of a parent process are not there after a fork."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="stillhouse-head")


def stored(side: Tensor) -> np.ndarray[Any, Any]:
    """The same memory for numba, which has no bf16: `vector_math.read` makes fp32 of it."""
    return (side.view(torch.int16) if side.dtype == torch.bfloat16 else side).numpy()


def _room(width: int, loss: Any, at_one: int) -> Any:
    """Scratch for one thread, of one element where the loss needs none."""
    from stillhouse.head import fused_blocks as blocks
    from stillhouse.head import fused_entries as entries

    alone, adaptive = isinstance(loss, entries.Alone), isinstance(loss, entries.AdaptiveKL)
    needed = (True, not alone, at_one == blocks.APART, isinstance(loss, entries.InterpolatedTarget))
    student, teacher, one, mixed = (np.empty(width if there else 1, dtype=np.float32) for there in needed)
    bins = entries.BINS if adaptive else 1
    return blocks.Room(student, teacher, one, mixed, np.empty(bins), np.empty(bins, dtype=np.int32))


def _task(work: Elementwise) -> Any:
    from stillhouse.head import fused_blocks as blocks

    temperature, kd_weight, ce_weight = 1.0, 0.0, 0.0
    at_one = blocks.AS_IS if Rows.cross_entropy in work.monitors or Rows.entropy in work.monitors else blocks.NOT_ASKED
    for term in work.terms:
        if type(term.divergence) is CrossEntropy:
            ce_weight, at_one = float(term.weight), blocks.AS_IS
        else:
            kd_weight, temperature = float(term.weight), float(cast(Any, term.divergence).temperature)
    if at_one == blocks.AS_IS and temperature != 1.0:
        at_one = blocks.SQUARED if temperature == 2.0 else blocks.APART
    return blocks.Task(
        temperature=temperature,
        inverse=np.float32(1.0 / temperature),
        at_one=at_one,
        scale=np.float32(work.student.scale),
        teacher_scale=np.float32(1.0 if work.teacher is None else work.teacher.scale),
        kd_weight=kd_weight,
        ce_weight=ce_weight,
        wants_gradient=work.wants_gradient and bool(work.terms),
        wants_agreement=Rows.agreement in work.monitors,
        wants_entropy=Rows.entropy in work.monitors,
    )


def _loss(work: Elementwise) -> Any:
    """The divergence from the teacher as the kernels take it."""
    from stillhouse.head import fused_entries as entries

    f32 = np.float32
    for term in work.terms:
        match term.divergence:
            case ForwardKL() | JensenShannon(beta=0.0) | SkewForwardKL(lam=0.0):
                return entries.ForwardKL()
            case ReverseKL() | JensenShannon(beta=1.0) | SkewReverseKL(lam=0.0):
                return entries.ReverseKL()
            case TotalVariation():
                return entries.TotalVariation()
            case JensenShannon(beta=beta):
                return entries.JensenShannon(*_mixture(beta, 1.0 - beta))
            case SkewForwardKL(lam=lam) if not isinstance(lam, Tensor):
                return entries.SkewForwardKL(*_mixture(lam, 1.0 - lam))
            case SkewReverseKL(lam=lam, detach_mixture=detached) if not isinstance(lam, Tensor):
                return entries.SkewReverseKL(*_mixture(1.0 - lam, lam), f32(not detached))
            case ToDi(scale=scale):
                return entries.ToDi(f32(scale))
            case AdaptiveKL(mu=mu):
                return entries.AdaptiveKL(float(mu))
            case InterpolatedTarget(t=t):
                return entries.InterpolatedTarget(f32(float(t)))
            case Decoupled(alpha=alpha, beta=beta):
                return entries.Decoupled(float(alpha), float(beta))
            case _:
                continue
    return entries.Alone()


def _mixture(first: float, second: float) -> tuple[Any, Any, Any]:
    """Both weights, and where the log-ratio is cut, as in `divergence.mixtures`."""
    limits = np.finfo(np.float32)
    smaller = min(weight for weight in (first, second) if weight > 0.0)
    bound = min(9.0 - math.log(limits.eps) - math.log(smaller), math.log(limits.max) - 8.0)
    return np.float32(first), np.float32(second), np.float32(bound)
