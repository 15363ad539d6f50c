"""The divergences again: slow, obvious, by autograd, over whole rows; and the rows to compare them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Every divergence, at its defaults and at the ends of its parameters.
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("tvd", {}),
    *(("jsd", {"beta": beta}) for beta in (0.0, 1e-6, 0.1, 0.5, 0.9, 1.0)),
    *(("skew_forward_kl", {"lam": lam}) for lam in (0.0, 1e-6, 0.1, 0.7, 1.0)),
    *(("skew_reverse_kl", {"lam": lam}) for lam in (0.0, 1e-6, 0.1, 0.7, 1.0)),
    *(("skew_reverse_kl", {"lam": lam, "detach_mixture": True}) for lam in (0.1, 0.7)),
    *(("adaptive_kl", {"mu": mu}) for mu in (0.0, 0.2, 0.5, 1.0)),
    *(("adaptive_kl", {"mu": mu, "taid_port": True}) for mu in (0.1, 0.5)),
    *(("todi", {"scale": scale}) for scale in (0.0, 1.0, 4.0, 50.0)),
    *(("taid", {"t": t}) for t in (0.0, 0.4, 1.0)),
    *(("dkd", {"alpha": alpha, "beta": beta}) for alpha, beta in ((1.0, 0.5), (0.0, 8.0), (3.0, 0.0))),
    *(("uld", {"top_k": top_k}) for top_k in (0, 1, 7)),
]
WITH_TEACHER = [setting for setting in SETTINGS if setting[0] != "cross_entropy"]


@dataclass
class Both:
    """Both sides of some rows; entries where either logit is -inf are 0 in all but `q_whole` and `p_whole`."""

    lq: Tensor
    lp: Tensor
    q: Tensor
    p: Tensor
    q_whole: Tensor
    p_whole: Tensor

    @classmethod
    def of(cls, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Both:
        lq, lp = (student_logits / temperature).log_softmax(-1), (teacher_logits / temperature).log_softmax(-1)
        common = torch.isfinite(student_logits) & torch.isfinite(teacher_logits)
        q, p = (student_logits / temperature).softmax(-1), (teacher_logits / temperature).softmax(-1)
        return cls(torch.where(common, lq, 0.0), torch.where(common, lp, 0.0), q * common, p * common, q, p)


def mixture(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """log(weight exp(first) + (1 - weight) exp(second))."""
    if weight in (0.0, 1.0):
        return first if weight == 1.0 else second
    log_weight, log_rest = torch.tensor([weight, 1.0 - weight], dtype=first.dtype).log()
    return torch.logaddexp(first + log_weight, second + log_rest)


def forward_kl(x: Both) -> Tensor:
    return (x.p * (x.lp - x.lq)).sum(-1)


def reverse_kl(x: Both) -> Tensor:
    return (x.q * (x.lq - x.lp)).sum(-1)


def tvd(x: Both) -> Tensor:
    return 0.5 * (x.p - x.q).abs().sum(-1)


def jsd(x: Both, beta: float) -> Tensor:
    if beta == 0.0:
        return forward_kl(x)
    if beta == 1.0:
        return reverse_kl(x)
    lm = mixture(x.lp, x.lq, beta)
    return beta * (x.p * (x.lp - lm)).sum(-1) + (1.0 - beta) * (x.q * (x.lq - lm)).sum(-1)


def skew_forward_kl(x: Both, lam: float) -> Tensor:
    return (x.p * (x.lp - mixture(x.lp, x.lq, lam))).sum(-1)


def skew_reverse_kl(x: Both, lam: float, detach_mixture: bool = False) -> Tensor:
    lm = mixture(x.lq, x.lp, lam)
    return (x.q * (x.lq - (lm.detach() if detach_mixture else lm))).sum(-1)


def todi(x: Both, scale: float) -> Tensor:
    upward = torch.sigmoid(scale * (x.lp - x.lq)).detach()
    return (upward * x.p * (x.lp - x.lq) + (1.0 - upward) * x.q * (x.lq - x.lp)).sum(-1)


def adaptive_kl(x: Both, mu: float, taid_port: bool = False) -> Tensor:
    """By a full sort of every row; the mass of a whole row is 1, however its sum rounds."""
    gap = (x.p_whole - x.q_whole).abs()  # [N, V]
    ascending, order = x.p_whole.sort(stable=True)
    mass = ascending.cumsum(-1).clamp(max=1.0)
    # TAID's port applies to ids what it finds in sorted order.
    head = mass >= mu if taid_port else torch.empty_like(mass, dtype=torch.bool).scatter(-1, order, mass > mu)
    head_gap, tail_gap = (gap * head).sum(-1), (gap * ~head).sum(-1)
    total = head_gap + tail_gap
    weight = torch.where(total > 0.0, head_gap / torch.where(total > 0.0, total, 1.0), 0.5)
    if taid_port:
        return weight * -(x.p * x.lq).sum(-1) + (1.0 - weight) * reverse_kl(x)
    return weight.detach() * forward_kl(x) + (1.0 - weight.detach()) * reverse_kl(x)


def taid(student: Tensor, teacher: Tensor, common: Tensor, t: float) -> Tensor:
    """Both logits at T; 0 times -inf is 0."""
    parts = [weight * logits for weight, logits in ((1.0 - t, student.detach()), (t, teacher)) if weight > 0.0]
    target = sum(parts[1:], start=parts[0]).softmax(-1)
    return -torch.where(common, target * torch.where(common, student.log_softmax(-1), 0.0), 0.0).sum(-1)


def dkd(student: Tensor, teacher: Tensor, common: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """Both logits at T; a part whose logits either side excludes counts nothing."""
    at_label = torch.nn.functional.one_hot(labels, student.shape[-1]).bool()

    def two_parts(z: Tensor) -> tuple[Tensor, Tensor]:
        rest = z.masked_fill(at_label, -torch.inf)
        whole = z.logsumexp(-1)
        return torch.stack([z[at_label] - whole, rest.logsumexp(-1) - whole], -1), rest.log_softmax(-1)

    (b_q, rest_q), (b_p, rest_p) = two_parts(student), two_parts(teacher)
    both = torch.isfinite(b_q) & torch.isfinite(b_p)
    label_part = torch.where(both, b_p.exp() * (b_p - b_q).masked_fill(~both, 0.0), 0.0).sum(-1)
    inside = common & ~at_label
    rest_part = torch.where(inside, rest_p.exp() * (rest_p - rest_q).masked_fill(~inside, 0.0), 0.0).sum(-1)
    return alpha * label_part + beta * rest_part


def uld(x: Both, top_k: int) -> Tensor:
    ranked = [side.sort(dim=-1, descending=True, stable=True).values for side in (x.p_whole, x.q_whole)]
    return (ranked[0] - ranked[1]).abs()[:, : top_k or None].sum(-1)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "tvd": tvd,
    "jsd": jsd,
    "skew_forward_kl": skew_forward_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "adaptive_kl": adaptive_kl,
    "todi": todi,
    "uld": uld,
}


def twin(name: str, params: dict[str, Any], temperature: float, rows: SomeRows) -> tuple[Tensor, Tensor]:
    """Values [N] and gradients [N, V] by the student's logits, in fp64 by autograd."""
    student = rows.student.double().requires_grad_()
    if name == "cross_entropy":
        values = -student.log_softmax(-1).gather(-1, rows.labels[:, None]).squeeze(-1)
    elif name in ("taid", "dkd"):
        z_s, z_t = student / temperature, rows.teacher.double() / temperature
        common = torch.isfinite(rows.student) & torch.isfinite(rows.teacher)
        if name == "taid":
            values = taid(z_s, z_t, common, **params)
        else:
            values = temperature**2 * dkd(z_s, z_t, common, rows.labels, **params)
    else:
        values = FORMULAS[name](Both.of(student, rows.teacher.double(), temperature), **params)
    if not values.requires_grad:  # a mixture that is the teacher itself
        return values, torch.zeros_like(student)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


@dataclass
class SomeRows:
    """Random logits of both sides and labels."""

    student: Tensor  # [N, V]
    teacher: Tensor  # [N, V]
    labels: Tensor  # [N]

    @classmethod
    def draw(
        cls, seed: int, rows: int, vocabulary: int, spread: float = 2.0, likeness: float = 0.7, dtype=torch.float64
    ) -> SomeRows:
        """Normal logits of standard deviation `spread`, the student's being `likeness` the teacher's."""
        generator = torch.Generator().manual_seed(seed)
        teacher = torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
        noise = torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
        student = likeness * teacher + (1.0 - likeness**2) ** 0.5 * noise
        labels = torch.randint(vocabulary, (rows,), generator=generator)
        return cls((student * spread).to(dtype), (teacher * spread).to(dtype), labels)

    def with_holes(self, seed: int, which: str) -> SomeRows:
        """-inf at some entries of either side or of both; never at a label, and never at every entry of a row."""
        generator = torch.Generator().manual_seed(seed)
        sides = []
        common = torch.rand(self.student.shape, generator=generator) < 0.3
        for name, logits in (("student", self.student), ("teacher", self.teacher)):
            holes = common if which == "same" else torch.rand(logits.shape, generator=generator) < 0.3
            holes = holes.scatter(-1, self.labels[:, None], value=False)
            sides.append(logits.masked_fill(holes, -torch.inf) if which in (name, "same", "either") else logits)
        return SomeRows(sides[0], sides[1], self.labels)
