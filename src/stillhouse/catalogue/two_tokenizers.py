"""Methods that were made for a teacher and a student with different tokenizers."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.catalogue.axes import CDM
from stillhouse.catalogue.divergences import DIVERGENCES, TEMPERATURE
from stillhouse.catalogue.entry import Entry, Parameter

KD_WEIGHT = Parameter(
    0.5, "the loss is (1 - kd_weight) CE + kd_weight KD", 0.0, 1.0, aliases=("kd_rate", "kd_ratio", "distil_ratio")
)
MAPS = ("exact", "min_edit", "prefix", "file")
_FACTOR = Parameter(None, "the weight of KD; without a value the form's own", 0.0, aliases=KD_WEIGHT.aliases)

_ULD = Entry(
    "uld",
    "Boizard et al., ULD, arXiv:2402.12030",
    "the probabilities of both sides are compared rank by rank, whatever their tokens",
    {
        "temperature": replace(TEMPERATURE, meaning="of both softmaxes (1 in every script)"),
        "form": Parameter(
            "dskd",
            "dskd: (1 - kd_weight) CE + kd_weight U (0.5); mcw: CE + kd_weight U (1); official: CE + kd_weight times "
            "the mean over examples of their mean row, the student's last token left out (1.5)",
            choices=("dskd", "mcw", "official"),
        ),
        "top_k": Parameter(
            0.0, "compare the highest so many ranks alone, and report a bound of what that leaves out; 0: all", 0.0,
            fixed=True, aliases=("k",),
        ),
        "kd_weight": _FACTOR,
    },
    aliases=("universal_logit_distillation",),
    formula="CE and U = sum over ranks r of |p_(r) - q_(r)|, p_(1) >= p_(2) >= ..., the shorter side filled with 0",
    official="The DSKD line sums U over the first min(n_s, n_t) positions, as here. The authors' own code averages by "
    "example (form: official).",
    alignment={"name": "position"},
    two_sided=True,
    by_map="never",
)  # fmt: skip

_MINED = Entry(
    "mined",
    "Wan et al., FuseLLM, arXiv:2401.10491; DSKD's MinED",
    "forward KL to the teacher's row moved by the least edit distance, where one token meets one; elsewhere the label",
    {
        "temperature": replace(TEMPERATURE, default=2.0, meaning=TEMPERATURE.meaning + " (2.0 in DSKD's scripts)"),
        "kd_weight": KD_WEIGHT,
    },
    aliases=("min_edit_dis_kld", "min_edit"),
    formula="(1 - kd_weight) CE + kd_weight D; D = KL(p'||q) in rows where exactly one teacher token meets the "
    "student's and the map sends it there, else -log q[y] at T; p' is p moved by the map",
    official="The released loss is exactly 0 in fp32 (the student's logits are overwritten by their own target); "
    "that does not exist here. Of several tokens that go to one it keeps the first: vocabulary: {many: first}.",
    alignment={"name": "dtw_matched"},
    vocabulary={"name": "min_edit"},
    two_sided=True,
    vocabularies=MAPS,
)

_MLOT = Entry(
    "multi_level_ot",
    "Cui et al., Multi-Level OT, arXiv:2412.14528",
    "the likeliest columns of both sides: their distance token by token, and a transport over the response",
    {
        "form": Parameter(
            "clean",
            "clean: columns ranked by response, sums over tokens; official: ranked by batch, means; official_greedy: "
            "so, the student's columns matched greedily; mcw: MCW-KD's port, on scored rows alone",
            choices=("clean", "official", "official_greedy", "mcw"),
        ),
        "top_k": Parameter(50.0, "columns that are compared", 1.0, fixed=True, aliases=("k", "top_k_vocab")),
        "kl_weight": Parameter(0.1, "of the cross-entropy between the softmaxes of both sides' columns", 0.0),
        "transport_weight": Parameter(0.1, "of the transport over positions", 0.0, aliases=("sinkhorn_weight",)),
        "iterations": Parameter(10.0, "of Sinkhorn", 1.0, fixed=True),
        "epsilon": Parameter(0.1, "of Sinkhorn", 0.0, open_low=True),
        "kd_weight": _FACTOR,
    },
    aliases=("mlot", "multilevelot", "multi_level_optimal_transport"),
    formula="CE + kd_weight (L1 + kl_weight H + transport_weight W) of the top_k columns of softmax(z / std(z))",
    official="The released codes rank columns over a whole batch, so that the loss depends on how a batch is split, "
    "and disagree in the direction of H. MCW-KD's port counts every position, prompts and padding too; form mcw is its "
    "formula on scored rows, whose numbers are therefore others.",
    alignment={"name": "position"},
    two_sided=True,
    by_map="never",
    aligners=("position", "span", "exact", "dtw"),
)

_CDM = Entry(
    "cdm",
    "Chen et al., CDM, arXiv:2502.11104",
    "the likeliest tokens of both sides, matched anew in each context by a map and a small edit distance",
    {
        **{name: parameter for name, parameter in CDM.parameters.items() if name != "static"},
        "preset": Parameter(
            "clean",
            "official: the released code, its slips included; scope, layout and protect_digits are then its own",
            choices=("clean", "official"),
        ),
        "layout": Parameter(
            "split", "a softmax for each direction, or one over both with the sides swapped in the second",
            choices=("split", "joint"),
        ),
        "b_divergence": Parameter(
            "reverse_kl", "of the direction from the student", choices=("reverse_kl", "forward_kl")
        ),
        "reduction": Parameter(
            "row", "the official mean is over the elements of all rows, which makes KD 2 top_k times smaller",
            choices=("row", "element"),
        ),
        "temperature": TEMPERATURE,
        "kd_weight": KD_WEIGHT,
    },
    aliases=("contextual_dynamical_mapping", "cdmkld"),
    formula="(1 - kd_weight) CE + kd_weight (A + B) / 2; A = T^2 KL(p||q) over the teacher's top_k that have a match, "
    "B = T^2 KL(q||p) over the student's; each token of a response weighs the same",
    official="One softmax over both halves with the sides swapped in the second, T only in places, matches that leak "
    "from row to row and from one direction to the other: preset: official.",
    alignment={"name": "entropy_dtw", "merge": "mean"},
    vocabulary={"name": "exact", "ignore_space": True},
    two_sided=True,
    by_map="ids",
    vocabularies=MAPS,
)  # fmt: skip

_OVERLAP = replace(
    DIVERGENCES["forward_kl"],
    name="overlap",
    paper="Zhang et al., KDFlow (simple CTKD)",
    summary="forward KL over the tokens that both sides share, where they predict the same bytes",
    parameters={"temperature": TEMPERATURE, "kd_weight": KD_WEIGHT},
    aliases=("simple_ctkd",),
    formula="(1 - kd_weight) CE + kd_weight KL(p'||q'), p' and q' renormalised over the shared tokens",
    official="KDFlow calls it simple_ctkd. Any divergence over the same rows: alignment: {name: exact}, vocabulary: "
    "{name: overlap}.",
    alignment={"name": "exact"},
    vocabulary={"name": "overlap"},
    two_sided=True,
)

_GOLD = Entry(
    "gold",
    "Patiño et al., GOLD (TRL)",
    "ULD over groups of tokens of equal bytes, and JSD on the tokens that both sides share",
    {
        "merge": Parameter(
            "observed",
            "the row of a group: its first, times the probability of the tokens after it (observed), or its last, "
            "times that of the tokens before it (bayesian)",
            choices=("observed", "bayesian"),
        ),
        "hybrid": Parameter(True, "shared tokens by JSD and the others by rank; false: all by rank"),
        "beta": Parameter(0.5, "the teacher's weight in JSD's mixture", 0.0, 1.0),
        "matched_weight": Parameter(None, "of the shared tokens; without a value their share of the teacher's", 0.0),
        "unmatched_weight": Parameter(None, "of the others; without a value the rest of 1", 0.0),
        "temperature": TEMPERATURE,
        "teacher_temperature": Parameter(None, "of the teacher's softmax; without a value that", 0.0, open_low=True),
        "parity": Parameter(False, "TRL's numbers: rows are one position late in observed, the last token is left out, "
                                   "what is left over is a group, means by example"),
        "kd_weight": replace(KD_WEIGHT, default=1.0),
    },
    aliases=("general_online_logit_distillation", "extended_uld"),
    formula="(1 - kd_weight) CE + kd_weight sum over groups of (matched_weight JSD + unmatched_weight U) of merged "
    "rows, each a row times the probabilities of the group's other tokens",
    official="Its observed merge takes every probability from the row after the one that predicts the token (off by "
    "one), leaves out the last token even where that is no end, and is a mean by example over one micro-batch: parity, "
    "exact where a response is one run of tokens. extended_uld: false is alignment: position.",
    alignment={"name": "span", "merge": "mean"},
    two_sided=True,
    by_map="never",
    aligners=("span", "position"),
    whole_groups=True,
)  # fmt: skip

_ALM = Entry(
    "alm",
    "Minixhofer et al., ALM, arXiv:2503.20083",
    "the likelihoods of chunks of equal bytes are compared, each as the chance of one event",
    {
        "chunks": Parameter(
            "unconstrained", "the shortest that end together, or those that end before a blank",
            choices=("unconstrained", "space"),
        ),
        "boundary": Parameter(
            "merge", "what follows a chunk: nothing (none), also a blank (append), or chunks are joined where the "
            "teacher expects no blank, and a blank is appended (merge)",
            choices=("none", "append", "merge"),
        ),
        "threshold": Parameter(
            0.1, "of the teacher's blank, for merge", 0.0, 1.0, aliases=("tokenizer_pair_bias_threshold",)
        ),
        "difference": Parameter(
            "binary_ce", "between the two log-likelihoods",
            choices=("binary_ce", "abs", "abs_exp", "reverse_binary_kl", "binary_kl_temp_limit", "joschu_k2"),
        ),
        "temperature": replace(TEMPERATURE, default=100.0, meaning="divides the log-likelihoods of chunks",
                               aliases=("binarization_temp",)),
        "eos_as_space": Parameter(False, "what follows a chunk is the end of the text instead of a blank"),
        "parity": Parameter(False, "tokenkit's denominator, which counts merged chunks twice, and means by chunk"),
        "kd_weight": Parameter(1.0, "the loss is CE + kd_weight ALM", 0.0),
    },
    aliases=("approximate_likelihood_matching",),
    formula="CE + kd_weight sum over chunks of D(log p_t(chunk) / T, log p_s(chunk) / T)",
    official="A mean over the chunks of a micro-batch, in merge mode divided by a count that is taken twice: parity. "
    "That count depends on the prompt's chunks there, which have no rows here: it is the same where the text's first "
    "token may be followed by a blank. There the last chunk has a boundary after the end of the text, here none.",
    alignment={"name": "span", "merge": "mean"},
    two_sided=True,
    by_map="never",
    aligners=("span",),
    whole_groups=True,
)  # fmt: skip

TWO_TOKENIZERS: dict[str, Entry] = {entry.name: entry for entry in (_ULD, _MINED, _MLOT, _CDM, _OVERLAP, _GOLD, _ALM)}
