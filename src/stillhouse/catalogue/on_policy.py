"""Methods that learn from what the student writes itself, with the defaults of their papers' scripts."""

from __future__ import annotations

from dataclasses import replace

from stillhouse.catalogue.divergences import DIVERGENCES, TEMPERATURE
from stillhouse.catalogue.entry import Entry, Parameter
from stillhouse.catalogue.two_tokenizers import KD_WEIGHT

_NO_CE = replace(KD_WEIGHT, default=1.0)
_MIXED = "(1 - kd_weight) CE + kd_weight D, D = "

_GKD = Entry(
    "gkd",
    DIVERGENCES["jsd"].paper,
    "the generalised Jensen-Shannon divergence, half of the batches on what the student writes",
    {**DIVERGENCES["jsd"].parameters, "kd_weight": _NO_CE},
    aliases=("generalized_kd", "generalised_kd", "on_policy_kd"),
    formula=f"{_MIXED}{DIVERGENCES['jsd'].formula}",
    official="TRL's defaults. TAID's and DistiLLM's repositories call gkd a replay of kept texts with beta 0.1: "
    "rollout.replay: true, beta: 0.1. TRL's seq_kd is the data that `stillhouse generate` writes.",
    rollout={"source": "mixed", "share": 0.5, "temperature": 0.9, "max_new_tokens": 128},
)

_IMITKD = Entry(
    "imitkd",
    "Lin et al., ImitKD, arXiv:2009.07253",
    "forward KL on what the student wrote, kept and drawn again",
    {**DIVERGENCES["forward_kl"].parameters, "kd_weight": _NO_CE},
    aliases=("imit_kd", "imitation_kd"),
    formula=f"{_MIXED}{DIVERGENCES['forward_kl'].formula}",
    official="DistiLLM's mixed-fkl with mixed_alpha 1; its released code stops on it (an unset threshold).",
    rollout={"source": "mixed", "share": 1.0, "replay": True},
)

_DISTILLM = Entry(
    "distillm",
    "Ko et al., DistiLLM, arXiv:2402.03898",
    "a skew KL, the more on what the student wrote the less the dev loss falls",
    {
        "temperature": TEMPERATURE,
        "loss": Parameter(
            "skew_forward_kl", "skew_reverse_kl in the scripts of all students but the smallest GPT-2",
            choices=("skew_forward_kl", "skew_reverse_kl"),
        ),
        "lam": DIVERGENCES["skew_forward_kl"].parameters["lam"],
        "kd_weight": _NO_CE,
    },
    aliases=("distillm1", "distillm_1"),
    formula=f"{_MIXED}sum p (log p - log m), m = lam p + (1 - lam) q; or sum q (log q - log m), "
    "m = lam q + (1 - lam) p",
    official="There the labels of the student's texts are not shifted, so their loss is of positions off by one, and a "
    "text whose end is also padding loses its end; here both are as for the data. Cross-entropy on a text corpus "
    "beside it is not built.",
    rollout={"source": "adaptive"},
)  # fmt: skip

_DISTILLM2 = Entry(
    "distillm2",
    "Ko et al., DistiLLM-2, arXiv:2503.07067",
    "skew forward KL on the data's response to a prompt, skew reverse KL on the student's own; means over pairs",
    {
        "temperature": replace(TEMPERATURE, meaning="divides both sides' logits; at 1 in seqkd and dpkd"),
        "loss": Parameter(
            "distillm_v2", "on both responses, or (kd, speculative_kd, which are one, and seqkd) on the data's alone",
            aliases=("loss_type",),
            choices=("distillm_v2", "distillm_v1", "gkd", "kd", "seqkd", "dpkd", "speculative_kd"),
        ),
        "alpha1": Parameter(0.1, "the teacher's share of the mixture on the data's responses", 0.0, 1.0,
                            aliases=("base_alpha_1",)),
        "alpha2": Parameter(0.1, "the student's share of the mixture on its own responses, also in distillm_v1",
                            0.0, 1.0, aliases=("base_alpha_2",)),
        "curriculum": Parameter(
            False, "each response has an alpha of its own, the lower the less the sides differ on it",
            aliases=("update_alpha",),
        ),
        "gradual_beta": Parameter(False, "b grows from 1 to 1.5 over the first half of the run; else b is 1"),
        "js_beta": Parameter(0.9, "the teacher's weight in gkd", 0.0, 1.0),
        "dpkd_beta": Parameter(0.1, "slope of the preference in dpkd", 0.0, open_low=True),
    },
    aliases=("distillm_2", "distillm_v2", "cald"),
    formula="(2 - b) D(p||alpha1 p + (1 - alpha1) q) on the data's response + b D(q||alpha2 q + (1 - alpha2) p) on the "
    "student's, its mixture detached; D = KL, a mean over the tokens of a response; curriculum: alpha = "
    "clip(1 - (1 - alpha) g0 / g, 0.01, alpha), g = exp(mean log p[y]) - exp(mean log q[y]), negated on the student's, "
    "g0 its mean in the first step; gkd: JSD, distillm_v1: the second D, on both; dpkd: -log sigmoid(dpkd_beta "
    "(s - t)), s and t the student's and teacher's mean log-probability of the data's response less that of the other",
    official="curriculum and gradual_beta are switched off there by constants, and would not run: the anchor is read "
    "from the wrong place and alpha carries gradient. There losses are in the dtype of the logits. The text there is "
    "sampled by vLLM before training (max_tokens 1024): rollout.written. seqkd, kd and speculative_kd ask for no text "
    "of the student's, and have none.",
    one_tokenizer=True,
    rollout={"source": "paired", "temperature": 0.8, "top_p": 0.95},
    sources=("paired",),
    alone={"loss": ("seqkd", "kd", "speculative_kd")},
)  # fmt: skip

_MINILLM = Entry(
    "minillm",
    "Gu et al., MiniLLM, arXiv:2306.08543",
    "reverse KL of whole responses by policy gradient on what the student writes, and of every next token",
    {
        "temperature": replace(TEMPERATURE, meaning="divides both sides' logits; rollout.temperature too", fixed=True),
        "reward_scaling": Parameter(0.5, "divides a token's log p[y] - log q[y]", 0.0, open_low=True, fixed=True),
        "cliprange_reward": Parameter(100.0, "the reward is cut to so much either way", 0.0, open_low=True, fixed=True),
        "gamma": Parameter(0.95, "discount of what follows", 0.0, 1.0, fixed=True),
        "cliprange": Parameter(0.2, "how far q[y] may move from what it was when y was drawn", 0.0),
        "length_norm": Parameter(True, "a return is divided by the number of tokens that it sums"),
        "single_step": Parameter(
            True, "add the reverse KL of every next token, over the whole vocabulary", aliases=("single_step_reg",)
        ),
        "lm_coef": Parameter(1.0, "weight of the loss on data.corpus, a mean over its tokens, where there is one", 0.0),
        "lm_kd": Parameter(0.5, "the share of KL(p||q) beside cross-entropy in that loss", 0.0, 1.0),
        "parity": Parameter(
            False, "the released numbers: returns hold the token's own reward beside single_step, log p at T = 1"
        ),
    },
    aliases=("mini_llm",),
    formula="max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange)) + KL(q||p), rho = w q[y] / q_old[y], w = q_old[y] "
    "over the chance y was drawn with; A of token k is sum over j > k of gamma^(j - k - 1) r_j over their number, "
    "whitened over what is written at once, r = clip((log p[y] - log q_old[y]) / reward_scaling); without single_step "
    "j starts at k; with data.corpus, plus lm_coef ((1 - lm_kd) CE + lm_kd KL(p||q)) on its text",
    official="Its returns start at the token itself, whose reward is the single-step KL already, so counted twice: "
    "parity. It whitens over padding as well, parity does not. It reads its corpus in order, here every step draws. "
    "Its 256 responses, shuffled over 4 inner epochs: rollout.window: 256; without, reuse repeats a step. Its scripts: "
    "learning_rate 5e-6, warmup_steps 100, constant, adam_beta2 0.95, weight_decay 1e-6, no dropout "
    "(student.dropout: 0).",
    one_tokenizer=True,
    rollout={"source": "student", "teacher_mix": 0.2, "reuse": 4},
    sources=("student",),
    whole_draws=True,
)

ON_POLICY: dict[str, Entry] = {entry.name: entry for entry in (_GKD, _IMITKD, _DISTILLM, _DISTILLM2, _MINILLM)}
