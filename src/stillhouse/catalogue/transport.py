"""MCW-KD: distillation by optimal transport between the positions of two tokenizations, by several costs at once."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.catalogue.dual_space import OBJECTIVE, PROJECTORS, STD_SCOPE
from stillhouse.catalogue.entry import Entry, Parameter
from stillhouse.catalogue.two_tokenizers import KD_WEIGHT

_PAPER = "Vuong et al., 2026, MCW-KD, doi:10.1609/aaai.v40i39.40619"
_FACTOR = replace(KD_WEIGHT, default=5.0, high=float("inf"), aliases=("kd_rate",))
_ALIGNERS = ("position", "span", "exact", "dtw", "entropy_dtw")
_TOP_K = Parameter(
    400.0, "likeliest logits of a position, in descending order, that are compared", 1.0,
    aliases=("k", "top_k_vocab"), fixed=True,
)  # fmt: skip
_SHARED: dict[str, Parameter] = {
    "logit_weight": Parameter(1.0, "of the transport by logits", 0.0, aliases=("ot_weight_logits",)),
    "hidden_weight": Parameter(1.0, "of the transport by hidden states", 0.0, aliases=("ot_weight_hidden",)),
    "update_interval": Parameter(1000.0, "optimizer steps between two updates of the costs' weights", 1.0, fixed=True),
    "sigma": Parameter(
        2.0, "how strongly the weights of costs are held together at an update", 0.0, open_low=True, fixed=True
    ),
}
_COMMON = (
    "A transport is a mean over a micro-batch's examples there, which is then divided by the number of tokens, and "
    "counts prompts as well: parity divides so, but has response tokens alone, so that its training is near the "
    "released code's and not equal. Cross-model attention is then as in std_scope: padded. "
)
_PARITY = Parameter(
    False,
    "the released scale, one mean of a micro-batch over all tokens; salience as drawn; gradients also through the "
    "student's part of the mixture, whose share grows with micro-batches",
)

_PRIMAL = Entry(
    "mcw_kd",
    _PAPER,
    "DSKD's cross-model attention, and transports over positions by weighted costs of logits and of hidden states",
    {
        **OBJECTIVE,
        "temperature": replace(OBJECTIVE["temperature"], default=3.0, meaning="divides the logits of both sides"),
        "kd_weight": replace(_FACTOR, meaning="of cross-model attention (0.5 in the scripts with LoRA)"),
        "top_k": replace(_TOP_K, meaning=_TOP_K.meaning + " (300 in the scripts with LoRA)"),
        **_SHARED,
        "std_scope": STD_SCOPE,
        "parity": _PARITY,
        **PROJECTORS,
    },
    aliases=("mcw", "multi_cost_wasserstein_kd"),
    formula="CE + kd_weight KD + logit_weight W_l + hidden_weight W_h; KD of dskd_cma, or, where the recipe has a "
    "vocabulary, D of the rows that it moves; W = N sum P C of each response of N tokens, P the entropic plan "
    "of C, C_l = .2 L2 + .5 KL + .3 salience of top_k logits, the teacher's mixed with the student's, C_h = .3"
    " edits + .5 L2 of windows + .2 cosine; weights anew every update_interval steps",
    official=_COMMON + "The weights of costs there follow the last example of each micro-batch, in parity too. The "
    "released code does not run as it is (weights of both transports are never defined: taken as 1).",
    alignment={"name": "position"},
    two_sided=True,
    by_map="asked",
    without_map=("s2t_divergence", "std_scope"),
    aligners=_ALIGNERS,
)
_DUAL = Entry(
    "mcw_kd_dual",
    _PAPER,
    "MCW-KD in its semi-dual form, with a learnt potential in the place of plans",
    {
        **_PRIMAL.parameters,
        "temperature": replace(OBJECTIVE["temperature"], default=2.0, meaning="divides the logits of both sides"),
        "kd_weight": replace(_FACTOR, default=2.0, meaning="of cross-model attention"),
        "top_k": replace(_TOP_K, default=300.0),
        "epsilon": Parameter(0.1, "of the c-transform", 0.0, aliases=("ot_epsilon",), open_low=True, fixed=True),
        "logit_weight": replace(
            _SHARED["logit_weight"], default=None, meaning="of the transport by logits; without a value 1, in parity 10"
        ),
        "hidden_weight": replace(
            _SHARED["hidden_weight"], default=None, meaning="of that by hidden states; without a value 1, in parity 10"
        ),
        "parity": replace(
            _PARITY, meaning=_PARITY.meaning + "; potentials climb example by example, on each process by itself"
        ),
    },
    aliases=("mcw_dual",),
    formula="CE / 2 + kd_weight KD + logit_weight W_l + hidden_weight W_h; KD of mcw_kd, W = N (mean phi + sum_k w_k "
    "mean phi^c_k) of each response of N tokens, phi a network of the teacher's positions, which climbs",
    official=_COMMON + "There potentials differ between processes and are never saved, and costs weigh the same for "
    "ever, as in parity (where they are saved); otherwise the optimizer moves the potentials, and the weights of costs "
    "follow mcw_kd's rule.",
    alignment={"name": "position"},
    two_sided=True,
    by_map="asked",
    without_map=("s2t_divergence", "std_scope"),
    aligners=_ALIGNERS,
)  # fmt: skip

TRANSPORT: dict[str, Entry] = {entry.name: entry for entry in (_PRIMAL, _DUAL)}
