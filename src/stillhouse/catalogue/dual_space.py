"""DSKD and what came of it: methods that compare student and teacher in the hidden spaces of both."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.catalogue.divergences import DIVERGENCES, TEMPERATURE
from stillhouse.catalogue.entry import Entry, Parameter
from stillhouse.catalogue.two_tokenizers import KD_WEIGHT

# Those that compare two rows over one vocabulary and nothing else.
OBJECTIVES = tuple(name for name in DIVERGENCES if name not in ("cross_entropy", "dkd", "uld"))
OBJECTIVE: dict[str, Parameter] = {
    "divergence": Parameter(
        "forward_kl", "D in the student's space; `t` is TAID's", aliases=("kd_objective",), choices=OBJECTIVES
    ),
    "s2t_divergence": Parameter(
        "forward_kl", "in the teacher's space; same: D there too", choices=("same", *OBJECTIVES)
    ),
    "temperature": replace(TEMPERATURE, default=2.0, meaning=TEMPERATURE.meaning + " (2.0 in DSKD's scripts)"),
    "t": Parameter(0.4, "where D is taid: the teacher's share of its target", 0.0, 1.0),
    "kd_weight": KD_WEIGHT,
}
PROJECTORS: dict[str, Parameter] = {
    "projector_learning_rate": Parameter(
        1e-3, "of the projectors alone", 0.0, aliases=("projector_lr", "dskd_projector_lr"), fixed=True
    ),
    "projector_weight_decay": Parameter(1e-2, "of the projectors, biases included", 0.0, fixed=True),
    "projectors": Parameter(
        "none",
        "a run of the same method, a checkpoint of it or its method.safetensors, whose projectors, and other "
        "parameters of the method's own, to begin with",
        fixed=True,
    ),
}
STD_SCOPE = Parameter(
    "response",
    "what the teacher's states and embeddings are normalised by: the deviation of an example's scored tokens, or "
    "(padded, the released numbers) of whole padded batches with token 0 where nothing is scored; then a padded "
    "vocabulary of the teacher counts as well",
    choices=("response", "padded"),
)

# All but CDM's, which is found from predictions where tokens are compared, and not in hidden spaces.
_KNOWN_BEFORE = ("span", "exact", "position", "dtw", "dtw_matched")
_FORMULA = (
    "(1 - kd_weight) CE + kd_weight (CE(Z) + D(student || Z) + KL(teacher || Z')); Z the student's head on the "
    "teacher's states in the student's space, trained by CE alone, Z' the teacher's head on the student's in its"
)
_DSKD = Entry(
    "dskd",
    "Zhang et al., DSKD, arXiv:2406.17328",
    "student and teacher are compared under the heads of both, by projected hidden states",
    {**OBJECTIVE, **PROJECTORS},
    aliases=("dual_space_kd", "dual_space"),
    formula=_FORMULA + ", by linear projectors",
    official="The same numbers. With a tokenizer of its own a teacher is compared where an aligner says, which needs "
    "no map of tokens.",
    alignment={"name": "exact"},
    aligners=_KNOWN_BEFORE,
    by_map="never",
)
_CMA = Entry(
    "dskd_cma",
    "Zhang et al., DSKD, arXiv:2406.17328",
    "DSKD between any tokenizers, by attention from the tokens of the one model to those of the other",
    {**OBJECTIVE, "std_scope": STD_SCOPE, **PROJECTORS},
    aliases=("dual_space_kd_with_cma", "dskdcma", "cross_model_attention"),
    formula=_FORMULA + ", both by cross-model attention; D where argmax Z is the label",
    official="Deviations over the whole padded batch, so that the loss changes with max_length, padding and the batch: "
    "std_scope: padded, which gives its numbers with data.pad_to_max_length. Biases of heads are used here, there not.",
    alignment={"name": "position"},
    two_sided=True,
    by_map="never",
    aligners=("position",),
)
_V2 = Entry(
    "dskd_v2",
    "Zhang et al., DSKD-v2, arXiv:2504.11426",
    "DSKD whose maps come from both heads, where tokens are equal; the teacher's likeliest tokens are its labels",
    {
        **OBJECTIVE,
        "s2t_divergence": replace(OBJECTIVE["s2t_divergence"], default="same"),
        "top_k": Parameter(
            0.0, "shared tokens that the maps are made from, the first by the student's ids; 0: all", 0.0,
            aliases=("topk_vocab", "init_topk"), fixed=True,
        ),
        "parity": Parameter(False, "the released means: each term over its own rows of a micro-batch"),
        **PROJECTORS,
        "projector_learning_rate": replace(PROJECTORS["projector_learning_rate"], default=5e-4),
        "projector_weight_decay": replace(PROJECTORS["projector_weight_decay"], default=0.0),
    },
    aliases=("dskdv2", "dskd_eta"),
    formula="as dskd, with the teacher's argmax for labels of CE(Z), and D where argmax Z is it; Z by a trained map "
    "that begins as Wt pinv(Ws), Z' by Ws pinv(Wt) of the student's head as it is, over the shared tokens",
    official="Terms are means over the rows that they are taken in, so that the loss depends on how a batch is split: "
    "parity. Where a teacher token has no equal, GPT-2's code learns <|endoftext|> instead; here the row is left out, "
    "as in KDFlow. KDFlow keeps the student's first head for Z' for ever.",
    alignment={"name": "exact"},
    vocabulary={"name": "exact"},
    aligners=_KNOWN_BEFORE,
    by_map="ids",
    vocabularies=("exact", "file"),
)  # fmt: skip

DUAL_SPACE: dict[str, Entry] = {entry.name: entry for entry in (_DSKD, _CMA, _V2)}
