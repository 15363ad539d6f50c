"""Every divergence: how far the student's distribution q is from the teacher's p, or from a label y."""

from __future__ import annotations

from stillhouse.catalogue.entry import Entry, Parameter

TEMPERATURE = Parameter(
    1.0, "divides both sides' logits; no T^2 factor", 0.0, open_low=True, aliases=("kd_temp", "kd_temperature")
)
_SKEW = Parameter(
    0.1, "weight of the divergence's first argument in the mixture", 0.0, 1.0,
    aliases=("lambda", "skew_lambda", "skew_alpha", "skew_beta"),
)  # fmt: skip
_CE_FORM = "TAID, DistiLLM and MiniLLM write the cross-entropy -sum p log q, larger by p's entropy: same gradient."
_MASKED = "There -inf logits give NaN gradients; here such entries contribute nothing to either."

_CROSS_ENTROPY = Entry(
    "cross_entropy",
    "-",
    "-log q[label]; the label is the data set's own next token",
    aliases=("ce", "sft", "nll"),
    needs_teacher=False,
    formula="-log q[y], always at temperature 1",
    official="ToDi's label smoothing counts the likelihood N times; it is 0 in every script and not built here.",
)

_FORWARD_KL = Entry(
    "forward_kl",
    "Hinton et al., 2015, arXiv:1503.02531",
    "KL(p||q): the student covers the teacher",
    {"temperature": TEMPERATURE},
    aliases=("fkl", "kl", "kd"),
    formula="sum p (log p - log q)",
    official=_CE_FORM,
)

_REVERSE_KL = Entry(
    "reverse_kl",
    "Gu et al., MiniLLM, arXiv:2306.08543",
    "KL(q||p): the student seeks the teacher's modes",
    {"temperature": TEMPERATURE},
    aliases=("rkl",),
    formula="sum q (log q - log p)",
    official=_MASKED,
)

_JSD = Entry(
    "jsd",
    "Agarwal et al., GKD, arXiv:2306.13649",
    "beta KL(p||m) + (1-beta) KL(q||m), m = beta p + (1-beta) q; at 0 and 1 the limits forward and reverse KL",
    {
        "temperature": TEMPERATURE,
        "beta": Parameter(0.5, "the teacher's weight in the mixture", 0.0, 1.0, aliases=("js_beta", "teacher_weight")),
    },
    aliases=("js", "js_divergence", "generalized_jsd", "jensen_shannon"),
    formula="beta KL(p||m) + (1 - beta) KL(q||m), m = beta p + (1 - beta) q; beta 0 and 1 are KL(p||q) and KL(q||p)",
    official="DistiLLM and KDFlow name the student's weight (1 - beta). ToDi adds 1e-9 inside its logarithms; TAID "
    "gives NaN for logits more than 103 apart. Neither is repeated here.",
)

_TVD = Entry(
    "tvd",
    "Wen et al., f-distill, arXiv:2307.15190",
    "half the L1 distance of p and q",
    {"temperature": TEMPERATURE},
    aliases=("total_variation", "total_variation_distance"),
    formula="1/2 sum |p - q|",
    official="ToDi takes it in the dtype of the logits; here it is fp32, as everywhere.",
)

_SKEW_FORWARD_KL = Entry(
    "skew_forward_kl",
    "Ko et al., DistiLLM, arXiv:2402.03898",
    "KL(p || lam p + (1-lam) q)",
    {"temperature": TEMPERATURE, "lam": _SKEW},
    aliases=("skewed_forward_kl", "sfkl", "skew_fkl"),
    formula="sum p (log p - log m), m = lam p + (1 - lam) q",
    official=f"{_CE_FORM} {_MASKED}",
)

_SKEW_REVERSE_KL = Entry(
    "skew_reverse_kl",
    "Ko et al., DistiLLM, arXiv:2402.03898",
    "KL(q || lam q + (1-lam) p)",
    {
        "temperature": TEMPERATURE,
        "lam": _SKEW,
        "detach_mixture": Parameter(False, "no gradient through the mixture (DistiLLM-2)"),
    },
    aliases=("skewed_reverse_kl", "srkl", "skew_rkl"),
    formula="sum q (log q - log m), m = lam q + (1 - lam) p",
    official=f"DistiLLM-2 detaches the mixture: detach_mixture. {_MASKED}",
)

_ADAPTIVE_KL = Entry(
    "adaptive_kl",
    "Wu et al., arXiv:2404.02657",
    "forward KL weighted by the gap on the teacher's head, reverse KL by the gap on its tail",
    {
        "temperature": TEMPERATURE,
        "mu": Parameter(0.5, "teacher mass of the tail", 0.0, 1.0, aliases=("adaptive_kl_alpha", "threshold")),
        "taid_port": Parameter(False, "the numbers of TAID's port, whose head set is by vocabulary order"),
    },
    aliases=("akl", "adaptive"),
    formula="w KL(p||q) + (1 - w) KL(q||p), w the share (detached) of sum |p - q| on the teacher's head: the tokens "
    "above a tail of mass mu",
    official="0/0 where p = q is 1/2 here and NaN there. TAID's port takes the last ids for the head, lets gradient "
    "through w and adds p's entropy: taid_port.",
)

_TODI = Entry(
    "todi",
    "Jung et al., ToDi, arXiv:2505.16297",
    "per token of the vocabulary, forward KL where q < p and reverse KL where q > p, by a detached sigmoid",
    {
        "temperature": TEMPERATURE,
        "scale": Parameter(1.0, "slope of the sigmoid of log p - log q", 0.0, aliases=("todi_scale",)),
    },
    formula="sum a p (log p - log q) + (1 - a) q (log q - log p), a = sigmoid(scale (log p - log q)) detached",
    official="The released code has no scale. Its value is KL(p||q) + KL(q||p) exactly; its gradient is not.",
)

_TAID = Entry(
    "taid",
    "Shing et al., TAID, arXiv:2501.16937",
    "cross-entropy to a target between student and teacher, interpolated in logits; the target is detached",
    {
        "temperature": TEMPERATURE,
        "t": Parameter(0.4, "the teacher's share of the target: 0 the student itself, 1 the teacher", 0.0, 1.0),
    },
    formula="-sum r log q, r = softmax(((1 - t) z_student + t z_teacher) / T) detached",
    official="There the interpolation is rounded to the logits' dtype, and t = 1 with a -inf logit is NaN.",
)

_DKD = Entry(
    "dkd",
    "Zhao et al., DKD, arXiv:2203.08679",
    "the KL of label against rest, and the KL among the rest, weighted apart",
    {
        "temperature": Parameter(1.0, "divides both sides' logits; the loss is multiplied by T^2", 0.0, open_low=True,
                                 aliases=TEMPERATURE.aliases),
        "alpha": Parameter(1.0, "weight of label against rest (TCKD)", 0.0, aliases=("dkd_alpha",)),
        "beta": Parameter(0.5, "weight of the rest (NCKD); the paper's images take 8", 0.0, aliases=("dkd_beta",)),
    },
    aliases=("decoupled_kd",),
    formula="T^2 (alpha KL((p[y], 1 - p[y]) || (q[y], 1 - q[y])) + beta KL(p' || q')), "
    "p' and q' without y, renormalised",
    official="It works in the dtype of the logits, and lowers the label's logit by 1000 instead of leaving it out.",
)  # fmt: skip

_ULD = Entry(
    "uld",
    "Boizard et al., ULD, arXiv:2402.12030",
    "probabilities compared rank by rank, whatever tokens they are of",
    {
        "temperature": TEMPERATURE,
        "top_k": Parameter(
            0.0, "compare the highest so many ranks alone, and report a bound of what that leaves out; 0: all", 0.0,
            fixed=True, aliases=("k",),
        ),
    },
    aliases=("universal_logit_distillation",),
    formula="sum over ranks r of |p_(r) - q_(r)|, p_(1) >= p_(2) >= ..., the shorter side filled with 0",
    official="The vocabularies may differ. Of equal probabilities the lowest id ranks first; torch.sort leaves "
    "that open.",
)  # fmt: skip

DIVERGENCES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        _CROSS_ENTROPY, _FORWARD_KL, _REVERSE_KL, _JSD, _TVD, _SKEW_FORWARD_KL, _SKEW_REVERSE_KL, _ADAPTIVE_KL, _TODI,
        _TAID, _DKD, _ULD,
    )
}  # fmt: skip
