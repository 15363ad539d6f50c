"""What `head.py` measures: one step of CE + KD from hidden states and heads, ours and as peers take it.

A step gives the loss (mean over scored rows, (1 - KD_WEIGHT) CE + KD_WEIGHT KD) and its gradient by the student's
hidden states and head weight. Peers are imported only where they are run; none is a dependency of Stillhouse.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stillhouse.catalogue import DIVERGENCES
from stillhouse.divergence import build
from stillhouse.head import Blocks, Head, Term, at_scored, rowwise_loss

TEMPERATURE, KD_WEIGHT = 2.0, 0.5
IGNORED = -100
LOSSES = [name for name, entry in DIVERGENCES.items() if entry.needs_teacher]
BETA = {"forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}  # of TRL's generalised JSD
Result = tuple[float, Tensor, Tensor]  # loss, d loss / d hidden [N, d_s], d loss / d weight [V, d_s]


@dataclass(frozen=True)
class Problem:
    """Hidden states [N, d] and head weights [V, d] of both sides and labels [N], some of them IGNORED."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor
    scored_at: Tensor  # the indices of labels that are not IGNORED, which ours gets from the collator

    @property
    def scored(self) -> int:
        return self.scored_at.shape[0]

    def masked(self, share: float) -> Problem:
        """The same with this share of the rows unlabelled, every other row where it is a half."""
        labels = self.labels.clone()
        if share:
            labels[:: round(1 / share)] = IGNORED
        return Problem(
            self.hidden,
            self.weight,
            self.teacher_hidden,
            self.teacher_weight,
            labels,
            (labels != IGNORED).nonzero().squeeze(-1),
        )


def problem(dtype: torch.dtype, V: int, N: int, d_s: int, d_t: int, device: str) -> Problem:
    """Synthetic: logits of both sides are independent and normal, with a standard deviation of 2.5."""
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, width: int, scale: float) -> Tensor:
        return torch.randn(rows, width, generator=generator).mul_(scale).to(device, dtype)

    return Problem(
        normal(N, d_s, 1.0).requires_grad_(),
        normal(V, d_s, 2.5 * d_s**-0.5).requires_grad_(),
        normal(N, d_t, 1.0),
        normal(V, d_t, 2.5 * d_t**-0.5),
        torch.randint(V, (N,), generator=generator).to(device),
        torch.arange(N).to(device),
    )


def _finish(loss: Tensor, given: Problem) -> Result:
    d_hidden, d_weight = torch.autograd.grad(loss, (given.hidden, given.weight))
    return loss.item(), d_hidden, d_weight


def ours(loss: str, kd_only: bool = False, blocks: Blocks | None = None) -> Callable[[Problem], Result]:
    """Stillhouse: rows without a label are dropped first, then `rowwise_loss`."""
    divergence = build(loss, **({"temperature": TEMPERATURE} if "temperature" in DIVERGENCES[loss].parameters else {}))
    terms = [Term("ce", build("cross_entropy"), 1.0 - KD_WEIGHT), Term("kd", divergence, KD_WEIGHT)]
    if kd_only:
        terms = [Term("kd", divergence)]

    def step(given: Problem) -> Result:
        labels, head, teacher_head = given.labels[None], Head(given.weight), Head(given.teacher_weight)
        student = at_scored(given.hidden[None], head, labels, given.scored_at)
        teacher = at_scored(given.teacher_hidden[None], teacher_head, labels, given.scored_at)
        return _finish(rowwise_loss(student, teacher, terms, blocks=blocks).loss / given.scored, given)

    return step


def _logits(given: Problem) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        teacher = given.teacher_hidden @ given.teacher_weight.T  # [N, V]
    return given.hidden @ given.weight.T, teacher


def full_logits(loss: str) -> Callable[[Problem], Result]:
    """As the DSKD/ToDi line takes it: all logits, full fp32 probability tensors of both sides, autograd.

    Written from the formulas. Rows without a label are computed and then multiplied by 0, as there.
    """
    value = {
        "forward_kl": _forward_kl, "reverse_kl": _reverse_kl, "jsd": _jsd, "todi": _todi, "adaptive_kl": _adaptive_kl
    }[loss]  # fmt: skip

    def step(given: Problem) -> Result:
        logits, teacher_logits = _logits(given)  # [N, V]
        scored = given.labels != IGNORED  # [N]
        log_probs = logits.log_softmax(-1, torch.float32)
        nll = -log_probs.gather(-1, given.labels.clamp_min(0)[:, None])[:, 0]  # [N]
        log_q = (logits / TEMPERATURE).log_softmax(-1, torch.float32)
        log_p = (teacher_logits / TEMPERATURE).log_softmax(-1, torch.float32)
        q = (logits / TEMPERATURE).softmax(-1, torch.float32)
        p = (teacher_logits / TEMPERATURE).softmax(-1, torch.float32)
        kd = value(p, q, log_p, log_q, logits.isinf() | teacher_logits.isinf())  # [N]
        both = (1 - KD_WEIGHT) * nll + KD_WEIGHT * kd
        return _finish((both * scored).sum() / scored.sum(), given)

    return step


def _forward_kl(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor, infinite: Tensor) -> Tensor:
    return (p * (log_p - log_q)).masked_fill(infinite, 0.0).sum(-1)


def _reverse_kl(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor, infinite: Tensor) -> Tensor:
    return (q * (log_q - log_p)).masked_fill(infinite, 0.0).sum(-1)


def _jsd(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor, infinite: Tensor) -> Tensor:
    log_m = (0.5 * p + 0.5 * q).log()
    return _forward_kl(p, q, log_p, log_m, infinite) * 0.5 + _forward_kl(q, p, log_q, log_m, infinite) * 0.5


def _todi(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor, infinite: Tensor) -> Tensor:
    upward = torch.sigmoid(log_p - log_q).detach()
    parts = upward * p * (log_p - log_q) + (1 - upward) * q * (log_q - log_p)
    return parts.masked_fill(infinite, 0.0).sum(-1)


def _adaptive_kl(p: Tensor, q: Tensor, log_p: Tensor, log_q: Tensor, infinite: Tensor) -> Tensor:
    with torch.no_grad():
        ordered, index = p.sort(stable=True)  # [N, V] ascending
        gap = (p - q).abs().gather(-1, index)
        in_head = ordered.cumsum(-1) > 0.5
        weight = (gap * in_head).sum(-1) / gap.sum(-1)  # [N]
    forward, reverse = _forward_kl(p, q, log_p, log_q, infinite), _reverse_kl(p, q, log_p, log_q, infinite)
    return weight * forward + (1 - weight) * reverse


def _peer(module: str, name: str) -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return getattr(importlib.import_module(module), name)


def trl_gkd(loss: str) -> Callable[[Problem], Result]:
    """TRL's `GKDTrainer.generalized_jsd_loss` on all logits, and CE as Hugging Face models take it.

    The logits go in as the heads give them: at bf16 a quarter faster than in fp32, and a few per mille less exact.
    """
    generalized_jsd = _peer("trl.experimental.gkd.gkd_trainer", "GKDTrainer").generalized_jsd_loss

    def step(given: Problem) -> Result:
        logits, teacher_logits = _logits(given)  # [N, V]
        kd = generalized_jsd(
            logits[None], teacher_logits[None], given.labels[None], beta=BETA[loss], temperature=TEMPERATURE
        )
        return _finish((1 - KD_WEIGHT) * F.cross_entropy(logits.float(), given.labels) + KD_WEIGHT * kd, given)

    return step


def liger(chunk: int) -> Callable[[Problem], Result]:
    """Liger's fused chunked JSD; `torch.compile` is off on CPU, where it gains nothing."""
    loss_of = {
        compiled: _peer("liger_kernel.chunked_loss", "LigerFusedLinearJSDLoss")(
            weight_hard_loss=1 - KD_WEIGHT, weight_soft_loss=KD_WEIGHT, beta=0.5, ignore_index=IGNORED,
            temperature=TEMPERATURE, compiled=compiled, chunk_size=chunk,
        )
        for compiled in (False, True)
    }  # fmt: skip

    def step(given: Problem) -> Result:
        fused = loss_of[given.hidden.is_cuda]
        return _finish(
            fused(given.hidden, given.weight, given.teacher_hidden, given.teacher_weight, given.labels), given
        )

    return step


def trl_chunked(loss: str) -> Callable[[Problem], Result]:
    """TRL 1.16's chunked divergence of its DistillationTrainer. It has no cross-entropy: this is KD alone."""
    divergence = _peer("trl.trainer.distillation_trainer", "_chunked_divergence_loss")

    def step(given: Problem) -> Result:
        found, _, _ = divergence(
            given.hidden[None], given.teacher_hidden[None], given.weight, given.teacher_weight,
            (given.labels != IGNORED)[None], BETA[loss], temperature=TEMPERATURE,
        )  # fmt: skip
        return _finish(found, given)

    return step


def floor(blocked: bool) -> Callable[[Problem], Result]:
    """The matrix products alone: blocks of 256 rows and dW added in fp32 by tiles as ours does it, or each one whole.

    The student's own logits stand in for their gradient.
    """

    @torch.no_grad()
    def whole(given: Problem) -> Result:
        logits, _ = _logits(given)
        return 0.0, logits @ given.weight, logits.T @ given.hidden

    @torch.no_grad()
    def in_blocks(given: Problem) -> Result:
        d_weight = torch.zeros_like(given.weight, dtype=torch.float32)
        d_hidden = torch.empty_like(given.hidden)
        tile = Blocks.on(given.hidden.device).vocabulary_tile
        for rows in torch.arange(given.hidden.shape[0]).split(256):
            block = slice(int(rows[0]), int(rows[-1]) + 1)
            hidden = given.hidden[block]
            _ = given.teacher_hidden[block] @ given.teacher_weight.T
            logits = hidden @ given.weight.T  # [B, V]
            torch.mm(logits, given.weight, out=d_hidden[block])
            for start in range(0, d_weight.shape[0], tile):
                d_weight[start : start + tile] += logits[:, start : start + tile].T @ hidden
        return 0.0, d_hidden, d_weight.to(given.weight.dtype)

    return in_blocks if blocked else whole


def build_step(impl: str, loss: str) -> Callable[[Problem], Result]:
    """The step called `impl` for `loss`; ValueError where that implementation has no such loss."""
    if impl == "ours":
        return ours(loss)
    if impl == "full_logits":
        return full_logits(loss)
    if impl == "trl_gkd":
        return trl_gkd(loss)
    if impl == "trl_chunked":
        return trl_chunked(loss)
    if impl.startswith("liger_") and loss == "jsd":
        return liger(int(impl.removeprefix("liger_")))
    if impl.startswith("floor_"):
        return floor(blocked=impl == "floor_blocks")
    raise ValueError(f"{impl} has no {loss}")
