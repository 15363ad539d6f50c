"""Which positions and which tokens of two tokenizers correspond: every aligner and every vocabulary map by name."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.catalogue.entry import Entry, Parameter

_MERGE = Parameter(
    "first",
    "what a group of several positions is compared by: its first, whose contexts are equal; its last; or the mean",
    choices=("first", "last", "mean"),
)
_SPAN = Entry(
    "span",
    "-",
    "groups of predicted tokens that end at the same byte on both sides",
    {"merge": _MERGE},
    aliases=("byte_span", "bytes"),
)
_EXACT = Entry(
    "exact",
    "Zhang et al., DSKD-v2, arXiv:2504.11426",
    "predicted tokens of the same bytes alone (exact token alignment)",
    aliases=("eta", "exact_token_alignment"),
)
_POSITION = Entry(
    "position",
    "Boizard et al., ULD, arXiv:2402.12030",
    "the first with the first, and so on to the end of the shorter response",
    aliases=("index", "truncate"),
)
_DTW = Entry(
    "dtw",
    "Wan et al., FuseLLM, arXiv:2401.10491",
    "dynamic time warping over the edit distances of the tokens read last",
    {"merge": replace(_MERGE, default="mean")},
    aliases=("edit_distance",),
)
_DTW_MATCHED = Entry(
    "dtw_matched",
    "Wan et al., FuseLLM, arXiv:2401.10491",
    "of dtw the pairs of one token with one that the vocabulary map sends to it",
    aliases=("dtw_one_to_one",),
)
_ENTROPY_DTW = Entry(
    "entropy_dtw",
    "Chen et al., CDM, arXiv:2502.11104",
    "dtw whose distances weigh 3, 4 or 5 on either side, more where a prediction is uncertain; found in training",
    {"merge": replace(_MERGE, default="mean")},
    aliases=("dtw_entropy", "weighted_dtw"),
)
ALIGNERS: dict[str, Entry] = {
    entry.name: entry for entry in (_SPAN, _EXACT, _POSITION, _DTW, _DTW_MATCHED, _ENTROPY_DTW)
}

_SPACE = Parameter(False, "then also tokens that are equal but for a leading blank")
MANY = Parameter(
    "sum",
    "of several teacher tokens that go to one: all their probability, or that of the first",
    choices=("sum", "first"),
)
_EXACT_MAP = Entry(
    "exact",
    "-",
    "tokens that stand for the same bytes; the teacher gives the student's other tokens nothing",
    {"ignore_space": _SPACE, "many": MANY},
    aliases=("em",),
)
_MIN_EDIT = Entry(
    "min_edit",
    "Wan et al., FuseLLM, arXiv:2401.10491",
    "every teacher token goes to the student token of the least edit distance",
    {"many": MANY},
    aliases=("mined", "min_ed"),
)
_PREFIX = Entry(
    "prefix",
    "Chen et al., CDM, arXiv:2502.11104",
    "an equal token, else the longest student token that begins the teacher's",
    {"many": MANY},
    aliases=("prefix_em",),
)
_FILE = Entry(
    "file",
    "-",
    "a map from `stillhouse vocab-map`, or a published one",
    {
        "path": Parameter("map.json", "the file"),
        "zero_is_none": Parameter(False, "0 means none, as in CDM's published exact maps"),
        "many": MANY,
    },
)
_OVERLAP = Entry(
    "overlap",
    "Zhang et al., KDFlow (simple CTKD)",
    "both sides are cut to the tokens that they share, and renormalised",
    aliases=("shared", "intersection"),
)

CDM = Entry(
    "cdm",
    "Chen et al., CDM, arXiv:2502.11104",
    "the likeliest tokens of both sides in each row, matched by an exact map or by a small edit distance",
    {
        "top_k": Parameter(100.0, "likeliest tokens of either side", 1.0, fixed=True, aliases=("k",)),
        "threshold": Parameter(
            0.3, "two tokens match below this edit distance over the sum of their lengths; 0: the map alone", 0.0, 1.0,
            fixed=True, aliases=("theta", "simi_threadshold"),
        ),
        "directions": Parameter(
            "both", "match the teacher's likeliest (t2s), the student's (s2t), or both", choices=("both", "t2s", "s2t")
        ),
        "scope": Parameter(
            "position", "a match holds in its own row, or, the last one of a response, in all of its rows",
            choices=("position", "sequence"),
        ),
        "static": Parameter(
            "exact", "the map that comes first", choices=("exact", "min_edit", "prefix"), aliases=("map",)
        ),
        "protect_digits": Parameter(True, "numbers match when they are equal"),
    },
)  # fmt: skip
VOCABULARIES: dict[str, Entry] = {entry.name: entry for entry in (_OVERLAP, _EXACT_MAP, _MIN_EDIT, _PREFIX, _FILE, CDM)}
