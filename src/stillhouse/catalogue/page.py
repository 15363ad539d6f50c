"""The catalogue as a page: docs/methods.md is what this gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from stillhouse.catalogue.axes import ALIGNERS, VOCABULARIES
from stillhouse.catalogue.correspondence import alignment_of, vocabulary_of
from stillhouse.catalogue.entry import Entry, Parameter
from stillhouse.catalogue.methods import METHODS

_HEAD = """# Methods

<!-- Written by `stillhouse methods --markdown`; change src/stillhouse/catalogue instead. -->

Every method's loss is a sum over the scored tokens (those of responses; with `data.scored: all` every token), divided
once by their number in the whole optimizer step. Letters: z logits, q = softmax(z_student / T), p that of z_teacher, m
a mixture of both, y the data set's own next token, T the temperature (no T² factor unless a formula has one), CE the
cross-entropy -log q[y] at T = 1. KL(p||q) = sum p (log p - log q). Sums run over the vocabulary. An entry whose logit
is -inf on either side contributes nothing. Everything is fp32 (fp64 for fp64 weights), whatever the model's dtype.

What can be combined with what: [compositions.md](compositions.md).

A recipe names a method and its settings, by these names or those in brackets; `stillhouse methods` shows the same in a
terminal. **Any number not marked "fixed" may be a schedule** over the run's optimizer steps, and is then logged:

```yaml
method:
  name: todi
  temperature: {schedule: linear, start: 4.0, end: 1.0}             # over the whole run
  kd_weight: {schedule: cosine, start: 0.1, end: 0.9, until: 0.5}   # reached in the middle, then kept
  scale: {schedule: steps, values: [1, 2, 4], at: [0.3, 0.6]}       # changes after 30% and 60%
```

`training.parity` repeats an official loop: `dskd` (the DSKD and ToDi line: parameter groups by GPT-2's names, a cosine
to 1e-7) or `taid` (every micro-batch has its own mean, a cosine to 0). `true` is `dskd`.
"""


_ROLLOUT = """# Who writes the responses

The recipe's `rollout` says who writes what is learnt from: the data set, the teacher once before the first step
(`source: teacher`), or the student itself while it learns. **Any divergence goes with any of it**: `gkd`, `imitkd` and
`distillm` are names for a divergence with the rollout of a paper, and on-policy ToDi is

```yaml
method: todi
rollout: {source: mixed, share: 0.5}
```

A method's own settings hold beside another `source` as well, where that has them. Two methods are more than that:
`distillm2` compares the two responses of a prompt, its loss is a mean over pairs of means over tokens; `minillm` learns
from how likely what it wrote was. Both need one tokenizer on both sides. The student writes in evaluation mode: with
dropout it learns of another prediction than it drew from. What a teacher wrote in another run (`stillhouse generate`)
is data.
"""

_TWO_TOKENIZERS = """# Two tokenizers

A teacher may have another tokenizer than the student. It then reads the same examples in its own tokens, with its own
template; an *aligner* says which positions correspond, and a *vocabulary map* which tokens:

```yaml
method: {name: todi}
alignment: {name: span, merge: first}        # or: alignment: span
vocabulary: {name: min_edit}
teacher: {model: ..., template: chat}        # its own template, where that is another
```

**Any divergence goes with any aligner and any map**; the table says what each method takes unless the recipe names
something, and where it cannot choose; what a method has no use for is refused. KD is the sum over aligned rows, divided
by the student's scored tokens like everything else; rows that are not aligned learn their label alone. A teacher's row
is moved to the student's tokens before it is compared: tokens that nothing goes to have probability 0 (where a
divergence would then be infinite, as reverse KL, they do not count), several tokens that go to one are added up, and
`overlap` cuts both sides to the shared tokens and renormalises them. Given for models with the same tokenizer, both
sections work as well.
"""


def markdown() -> str:
    """Every method, aligner and vocabulary map: summary, formula, paper, settings with defaults and bounds."""
    lines = [_HEAD, *(line for entry in METHODS.values() for line in _section(entry)), _ROLLOUT, _TWO_TOKENIZERS]
    lines += [*_pairs(), "", "# Aligners\n", *(line for entry in ALIGNERS.values() for line in _section(entry))]
    lines += ["# Vocabulary maps\n", *(line for entry in VOCABULARIES.values() for line in _section(entry))]
    return "\n".join(lines)


def _pairs() -> Iterator[str]:
    """What each method takes where tokenizers differ."""
    yield "| method | aligner | may have | vocabulary | may have |\n|---|---|---|---|---|"
    for entry in METHODS.values():
        if entry.needs_teacher and not entry.one_tokenizer:
            alignment = alignment_of(entry, None)
            vocabulary = vocabulary_of(entry, None, alignment)
            maps = ", ".join(entry.vocabularies) or ("-" if entry.by_map == "never" else "any")
            shown = [_written(axis) if axis else "-" for axis in (alignment, vocabulary)]
            yield f"| {entry.name} | {shown[0]} | {', '.join(entry.aligners) or 'any'} | {shown[1]} | {maps} |"


def _written(axis: Mapping[str, object]) -> str:
    settings = ", ".join(f"{key}: {json.dumps(value)}" for key, value in axis.items() if key not in ("name", "many"))
    return f"{axis['name']}" + (f" ({settings})" if settings else "")


def _section(entry: Entry) -> Iterator[str]:
    yield f"## {entry.name}\n"
    if entry.aliases:
        yield f"Also called {', '.join(f'`{alias}`' for alias in entry.aliases)}.\n"
    paper = "" if entry.paper == "-" else f" ({entry.paper})"
    yield f"{entry.summary[0].upper()}{entry.summary[1:]}.{paper}\n"
    if entry.formula:
        yield f"    {entry.formula}\n"
    if entry.parameters:
        yield "| setting | default | may be | meaning |\n|---|---|---|---|"
        yield from (_row(name, parameter) for name, parameter in entry.parameters.items())
        yield ""
    if entry.rollout is not None:
        settings = ", ".join(f"{key}: {_plain(value)}" for key, value in entry.rollout.items())
        alone = f"; it learns from {' or '.join(entry.sources)} text alone" if entry.sources else ""
        yield f"*Who writes.* `rollout: {{{settings}}}` unless the recipe gives other settings{alone}.\n"
    if entry.official:
        yield f"*The official code.* {entry.official}\n"


def _row(name: str, parameter: Parameter) -> str:
    aliases = f" [{', '.join(parameter.aliases)}]" if parameter.aliases else ""
    fixed = "; fixed" if parameter.fixed else ""
    return (
        f"| `{name}`{aliases} | {json.dumps(parameter.default)} | {_bounds(parameter)}{fixed} | {parameter.meaning} |"
    )


def _bounds(parameter: Parameter) -> str:
    if parameter.choices is not None:
        return ", ".join(parameter.choices)
    if isinstance(parameter.default, bool):
        return "true, false"
    if isinstance(parameter.default, str):
        return "a file"
    low = f"{'above' if parameter.open_low else 'from'} {parameter.low:g}" if math.isfinite(parameter.low) else ""
    high = f"to {parameter.high:g}" if math.isfinite(parameter.high) else ""
    return " ".join(part for part in (low, high) if part) or "any number"


def _plain(value: object) -> str:
    """As YAML writes it."""
    return value if isinstance(value, str) else json.dumps(value)
