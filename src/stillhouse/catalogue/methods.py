"""Every method: what a recipe's `method` section may name, with the defaults of its paper's own scripts."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.catalogue.divergences import DIVERGENCES, TEMPERATURE
from stillhouse.catalogue.dual_space import DUAL_SPACE
from stillhouse.catalogue.entry import Entry, Parameter
from stillhouse.catalogue.on_policy import ON_POLICY
from stillhouse.catalogue.transport import TRANSPORT
from stillhouse.catalogue.two_tokenizers import KD_WEIGHT, TWO_TOKENIZERS

_NO_CE = replace(KD_WEIGHT, default=1.0)
_PAPER_TEMPERATURE = replace(TEMPERATURE, default=2.0, meaning=TEMPERATURE.meaning + " (2.0 in ToDi's scripts)")
WORD_LEVEL = (
    "forward_kl", "reverse_kl", "jsd", "tvd", "skew_forward_kl", "skew_reverse_kl", "adaptive_kl", "todi",
)  # fmt: skip


def _word_level(divergence: Entry) -> Entry:
    """Word-level distillation with `divergence` and cross-entropy, defaults of ToDi's scripts."""
    return replace(
        divergence,
        summary=f"CE and {divergence.summary}",
        parameters={**divergence.parameters, "temperature": _PAPER_TEMPERATURE, "kd_weight": KD_WEIGHT},
        formula=f"(1 - kd_weight) CE + kd_weight D, D = {divergence.formula}",
    )


_SFT = Entry(
    "sft",
    "-",
    "cross-entropy on the data set's responses",
    aliases=("ce", "fine_tune"),
    needs_teacher=False,
    formula=DIVERGENCES["cross_entropy"].formula,
    official="TAID's repository learns the prompts as well: data.scored: all.",
)

_SEQKD = Entry(
    "seqkd",
    "Kim and Rush, 2016, arXiv:1606.07947",
    "cross-entropy on responses that the teacher wrote (`stillhouse generate`)",
    aliases=("sequence_level_kd",),
    needs_teacher=False,
    formula=DIVERGENCES["cross_entropy"].formula,
    official="What MiniLLM and DistiLLM call seqkd is forward_kl on the teacher's text: write that.",
)

_TAID = Entry(
    "taid",
    DIVERGENCES["taid"].paper,
    "the target moves from the student to the teacher, as fast as the student follows",
    {
        "temperature": TEMPERATURE,
        "t_start": Parameter(0.4, "the teacher's share of the target at the start", 0.0, 1.0, fixed=True),
        "t_end": Parameter(1.0, "and at the end, never above it", 0.0, 1.0, fixed=True),
        "alpha": Parameter(5e-4, "how far a step may move t", 0.0, aliases=("taid_alpha",)),
        "beta": Parameter(0.99, "momentum of the relative change of the loss", 0.0, 1.0, aliases=("taid_beta",)),
        "adaptive": Parameter(True, "t follows the loss; false: the line from t_start to t_end"),
        "parity": Parameter(False, "t moves at every micro-batch, by that one's loss on its own rank"),
        "kd_weight": _NO_CE,
    },
    formula="(1 - kd_weight) CE + kd_weight J, J = -sum r log q, r = softmax(((1 - t) z_student + t z_teacher) / T); "
    "after a step t <- min(t_end, max(line, t + alpha sigmoid(m) (1 - t))), "
    "m <- beta m + (1 - beta) (J_before - J) / J_before",
    official="There t moves at every forward, validation included, by the loss of one rank's micro-batch; here once an "
    "optimizer step on the mean over all tokens of all ranks. parity: micro-batches. Its losses are means of means "
    "(training.parity: taid) and cover the prompts (data.scored: all).",
)

_CTKD = Entry(
    "ctkd",
    "Li et al., CTKD, arXiv:2211.16231",
    "forward KL at a temperature that is learnt to make it harder, by a reversed gradient that grows",
    {
        "temp_start": Parameter(1.0, "the lowest temperature", 0.0, open_low=True, fixed=True),
        "temp_end": Parameter(20.0, "the highest is temp_start + temp_end", 0.0, fixed=True),
        "theta": Parameter(1.0, "where the learnt number starts: T = temp_start + temp_end sigmoid(theta)", fixed=True),
        "theta_learning_rate": Parameter(1e-3, "of theta alone; it has no weight decay", 0.0, fixed=True),
        "reversal": Parameter(1.0, "how strongly theta's gradient is reversed at the end of the curriculum", 0.0),
        "num_loops": Parameter(10.0, "epochs over which it grows, by a cosine", 0.0, open_low=True, fixed=True),
        "parity": Parameter(False, "the released numbers: theta never learns, values with the teacher's entropy"),
        "kd_weight": _NO_CE,
    },
    aliases=("curriculum_temperature",),
    formula="(1 - kd_weight) CE + kd_weight T^2 KL(p||q), T = temp_start + temp_end sigmoid(theta); theta climbs: its "
    "gradient is multiplied by -reversal (1 - cos(pi min(epoch, num_loops) / num_loops)) / 2",
    official="TAID's port never optimises theta (T stays 15.62), and its reversal has the wrong sign and runs "
    "backwards: parity gives that. There are no other released numbers for language models.",
)

_DKD = replace(
    DIVERGENCES["dkd"],
    parameters={
        **DIVERGENCES["dkd"].parameters,
        "parity": Parameter(False, "divide by all positions, padding and prompts included, as TAID's port does"),
        "kd_weight": _NO_CE,
    },
    formula=f"(1 - kd_weight) CE + kd_weight D, D = {DIVERGENCES['dkd'].formula}",
    official=DIVERGENCES["dkd"].official
    + " Its mean is over every position, so that padding shrinks the loss: parity.",
)

_ONE_TOKENIZER = (_SFT, _SEQKD, *(_word_level(DIVERGENCES[name]) for name in WORD_LEVEL), _TAID, _CTKD, _DKD)
_BUILT = ("overlap", "mined", "cdm", "uld", "multi_level_ot", "gold", "alm")
METHODS: dict[str, Entry] = {
    **{entry.name: entry for entry in _ONE_TOKENIZER},
    **ON_POLICY,
    **{name: TWO_TOKENIZERS[name] for name in _BUILT},
    **{name: DUAL_SPACE[name] for name in ("dskd", "dskd_cma", "dskd_v2")},
    **TRANSPORT,
}
