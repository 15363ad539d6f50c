"""What exists, by name: divergences and methods with their papers, parameters, defaults and aliases.

The one place where a name, an alias, a default or a bound is written. It imports neither torch nor transformers, so
that a recipe is checked, and `stillhouse methods` answers, at once. `divergence.build` and `methods.build` turn an
entry into code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse.mistakes import Mistake, unknown_name


@dataclass(frozen=True)
class Parameter:
    """One setting of a divergence or a method: default, bounds (inclusive unless `open_low`) and meaning."""

    default: float | bool
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A divergence or a method as users know it: its paper, what it needs, its parameters."""

    name: str
    paper: str
    summary: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    needs_teacher: bool = True


TEMPERATURE = Parameter(
    1.0, "divides both sides' logits; no T^2 factor", 0.0, open_low=True, aliases=("kd_temp", "kd_temperature")
)
SKEW = Parameter(
    0.1, "weight of the divergence's first argument in the mixture", 0.0, 1.0,
    aliases=("lambda", "skew_lambda", "skew_alpha", "skew_beta"),
)  # fmt: skip

DIVERGENCES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "cross_entropy", "-", "-log q[label]; the label is the data set's own next token",
            aliases=("ce", "sft", "nll"), needs_teacher=False,
        ),
        Entry(
            "forward_kl", "Hinton et al., 2015, arXiv:1503.02531", "KL(p||q): the student covers the teacher",
            {"temperature": TEMPERATURE}, aliases=("fkl", "kl", "kd"),
        ),
        Entry(
            "reverse_kl", "Gu et al., MiniLLM, arXiv:2306.08543", "KL(q||p): the student seeks the teacher's modes",
            {"temperature": TEMPERATURE}, aliases=("rkl",),
        ),
        Entry(
            "jsd", "Agarwal et al., GKD, arXiv:2306.13649",
            "beta KL(p||m) + (1-beta) KL(q||m), m = beta p + (1-beta) q; at 0 and 1 the limits forward and reverse KL",
            {
                "temperature": TEMPERATURE,
                "beta": Parameter(0.5, "the teacher's weight in the mixture", 0.0, 1.0,
                                  aliases=("js_beta", "teacher_weight")),
            },
            aliases=("js", "js_divergence", "generalized_jsd", "jensen_shannon"),
        ),
        Entry(
            "tvd", "Wen et al., f-distill, arXiv:2307.15190", "half the L1 distance of p and q",
            {"temperature": TEMPERATURE}, aliases=("total_variation", "total_variation_distance"),
        ),
        Entry(
            "skew_forward_kl", "Ko et al., DistiLLM, arXiv:2402.03898", "KL(p || lam p + (1-lam) q)",
            {"temperature": TEMPERATURE, "lam": SKEW}, aliases=("skewed_forward_kl", "sfkl", "skew_fkl"),
        ),
        Entry(
            "skew_reverse_kl", "Ko et al., DistiLLM, arXiv:2402.03898", "KL(q || lam q + (1-lam) p)",
            {
                "temperature": TEMPERATURE,
                "lam": SKEW,
                "detach_mixture": Parameter(False, "no gradient through the mixture (DistiLLM-2)"),
            },
            aliases=("skewed_reverse_kl", "srkl", "skew_rkl"),
        ),
        Entry(
            "adaptive_kl", "Wu et al., arXiv:2404.02657",
            "forward KL weighted by the gap on the teacher's head, reverse KL by the gap on its tail",
            {
                "temperature": TEMPERATURE,
                "mu": Parameter(0.5, "teacher mass of the tail", 0.0, 1.0,
                                aliases=("adaptive_kl_alpha", "threshold")),
                "taid_port": Parameter(False, "the numbers of TAID's port, whose head set is by vocabulary order"),
            },
            aliases=("akl", "adaptive"),
        ),
        Entry(
            "todi", "Jung et al., ToDi, arXiv:2505.16297",
            "per token of the vocabulary, forward KL where q < p and reverse KL where q > p, by a detached sigmoid",
            {
                "temperature": TEMPERATURE,
                "scale": Parameter(1.0, "slope of the sigmoid of log p - log q", 0.0, aliases=("todi_scale",)),
            },
        ),
    )
}  # fmt: skip

KD_WEIGHT = Parameter(
    0.5, "the loss is (1 - kd_weight) CE + kd_weight KD", 0.0, 1.0, aliases=("kd_rate", "kd_ratio", "distil_ratio")
)
PAPER_TEMPERATURE = Parameter(
    2.0, TEMPERATURE.meaning + " (2.0 in ToDi's scripts)", 0.0, open_low=True, aliases=TEMPERATURE.aliases
)


def _word_level(divergence: Entry) -> Entry:
    """Word-level distillation with `divergence` and cross-entropy, defaults of ToDi's scripts."""
    return Entry(
        divergence.name,
        divergence.paper,
        f"CE and {divergence.summary}",
        {**divergence.parameters, "temperature": PAPER_TEMPERATURE, "kd_weight": KD_WEIGHT},
        divergence.aliases,
    )


METHODS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("sft", "-", "cross-entropy on the data set's responses", aliases=("ce", "fine_tune"),
              needs_teacher=False),
        Entry("seqkd", "Kim and Rush, 2016, arXiv:1606.07947",
              "cross-entropy on responses that the teacher wrote (`stillhouse generate`)",
              aliases=("sequence_level_kd",), needs_teacher=False),
        *(_word_level(entry) for entry in DIVERGENCES.values() if entry.needs_teacher),
    )
}  # fmt: skip


def find(kind: str, table: Mapping[str, Entry], name: str, where: str = "") -> Entry:
    """The entry called `name` or one of its aliases, upper and lower case and `-` and `_` alike; else a Mistake."""
    folded = str(name).lower().replace("-", "_")
    for entry in table.values():
        if folded == entry.name or folded in entry.aliases:
            return entry
    raise unknown_name(where, kind, str(name), table, (alias for entry in table.values() for alias in entry.aliases))


def settle(entry: Entry, settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Every parameter of `entry`: `settings` by their own names or aliases, checked, and defaults for the rest."""
    by_alias = {alias: name for name, parameter in entry.parameters.items() for alias in (name, *parameter.aliases)}
    settled: dict[str, Any] = {}
    for key, value in settings.items():
        key_where = f"{where}.{key}" if where else key
        if key not in by_alias:
            raise unknown_name(key_where, f"setting of {entry.name}", key, entry.parameters, by_alias)
        name = by_alias[key]
        if name in settled:
            raise Mistake(key_where, f"'{name}' is set twice, once by an alias", "keep one of them")
        settled[name] = _checked(value, entry.parameters[name], key_where)
    return {name: settled.get(name, parameter.default) for name, parameter in entry.parameters.items()}


def _checked(value: Any, parameter: Parameter, where: str) -> Any:
    if isinstance(parameter.default, bool):
        if not isinstance(value, bool):
            raise Mistake(where, f"must be true or false, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Mistake(where, f"must be a number, got {value!r}")
    too_low = value <= parameter.low if parameter.open_low else value < parameter.low
    if too_low or value > parameter.high:
        low = f"{'above' if parameter.open_low else 'at least'} {parameter.low:g}"
        high = f" and at most {parameter.high:g}" if math.isfinite(parameter.high) else ""
        raise Mistake(where, f"must be {low}{high}, got {value!r}")
    return float(value)
