"""How far apart two rows of logits are: pure functions with their closed-form gradients, a few lines each.

    kd = divergence.build("todi", temperature=2.0)
    kd(student_logits, teacher_logits)                      # [N], differentiable by the student's logits
    rows = divergence.Rows(student_logits, teacher_logits, labels)
    kd.value_and_gradient(rows)                             # ([N], [N, V]), no autograd; `rows` is shared by several

Letters used in this package:

    N, V        rows (next-token predictions), vocabulary
    T           temperature, divides both sides' logits; no T^2 factor anywhere here
    p, q        teacher's and student's probabilities at T; the first argument of KL(p||q) is the teacher
    d           log q - log p
    m           a mixture of p and q
    slope       dF/d(log q), the derivative of a value F by the student's log-probabilities, weights detached

**-inf logits** (padded vocabularies). An entry whose logit is -inf on either side contributes nothing to a value that
compares student and teacher, as in the official code; the normalisation of both sides still counts it with probability
0. The gradient is that of the value so defined. So where the student alone has -inf, the truly infinite forward KL is
finite here and may even be negative: vocabularies that differ are cut to the shared tokens before they come here. The
cross-entropy of a label whose logit is -inf is not masked: it is infinite. NaN and +inf logits give NaN values.
"""

from __future__ import annotations

from typing import Any

from stillhouse.catalogue import DIVERGENCES, find, settle
from stillhouse.divergence.adaptive import AdaptiveKL
from stillhouse.divergence.base import Divergence
from stillhouse.divergence.custom import from_function
from stillhouse.divergence.dkd import Decoupled
from stillhouse.divergence.kl import CrossEntropy, ForwardKL, ReverseKL, TotalVariation
from stillhouse.divergence.mixtures import JensenShannon, SkewForwardKL, SkewReverseKL
from stillhouse.divergence.rows import Rows
from stillhouse.divergence.taid import InterpolatedTarget
from stillhouse.divergence.todi import ToDi
from stillhouse.divergence.uld import RankDistance

__all__ = ["Divergence", "Rows", "build", "from_function"]

_CLASSES: dict[str, type[Divergence]] = {
    divergence.name: divergence
    for divergence in (
        CrossEntropy,
        ForwardKL,
        ReverseKL,
        JensenShannon,
        TotalVariation,
        SkewForwardKL,
        SkewReverseKL,
        AdaptiveKL,
        ToDi,
        InterpolatedTarget,
        Decoupled,
        RankDistance,
    )
}


def build(name: str, **params: Any) -> Divergence:
    """The divergence called `name` in `catalogue.DIVERGENCES`, or by an alias, with `params` and defaults for the rest.

    Raises `Mistake` for an unknown name or parameter, with the nearest right one, and for a value out of bounds.
    """
    entry = find("divergence", DIVERGENCES, name)
    return _CLASSES[entry.name](**settle(entry, params))
