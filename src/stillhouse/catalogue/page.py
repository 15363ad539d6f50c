"""The catalogue as a page: docs/methods.md is what this gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from stillhouse.catalogue.entry import Entry, Parameter
from stillhouse.catalogue.methods import METHODS

_HEAD = """# Methods

<!-- Written by `stillhouse methods --markdown`; change src/stillhouse/catalogue instead. -->

Every method's loss is a sum over the scored tokens (those of responses; with `data.scored: all` every token), divided
once by their number in the whole optimizer step. Letters: z logits, q = softmax(z_student / T), p that of z_teacher, m
a mixture of both, y the data set's own next token, T the temperature (no T² factor unless a formula has one), CE the
cross-entropy -log q[y] at T = 1. KL(p||q) = sum p (log p - log q). Sums run over the vocabulary. An entry whose logit
is -inf on either side contributes nothing. Everything is fp32 (fp64 for fp64 weights), whatever the model's dtype.

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


def markdown() -> str:
    """Every method: summary, formula, paper, settings with defaults and bounds, and what the official code does."""
    return "\n".join([_HEAD, *(line for entry in METHODS.values() for line in _section(entry))])


def _section(entry: Entry) -> Iterator[str]:
    yield f"## {entry.name}\n"
    if entry.aliases:
        yield f"Also called {', '.join(f'`{alias}`' for alias in entry.aliases)}.\n"
    paper = "" if entry.paper == "-" else f" ({entry.paper})"
    yield f"{entry.summary[0].upper()}{entry.summary[1:]}.{paper}\n"
    yield f"    {entry.formula}\n"
    if entry.parameters:
        yield "| setting | default | may be | meaning |\n|---|---|---|---|"
        yield from (_row(name, parameter) for name, parameter in entry.parameters.items())
        yield ""
    if entry.official:
        yield f"*The official code.* {entry.official}\n"


def _row(name: str, parameter: Parameter) -> str:
    aliases = f" [{', '.join(parameter.aliases)}]" if parameter.aliases else ""
    fixed = "; fixed" if parameter.fixed else ""
    return (
        f"| `{name}`{aliases} | {json.dumps(parameter.default)} | {_bounds(parameter)}{fixed} | {parameter.meaning} |"
    )


def _bounds(parameter: Parameter) -> str:
    if isinstance(parameter.default, bool):
        return "true, false"
    low = f"{'above' if parameter.open_low else 'from'} {parameter.low:g}" if math.isfinite(parameter.low) else ""
    high = f"to {parameter.high:g}" if math.isfinite(parameter.high) else ""
    return " ".join(part for part in (low, high) if part) or "any number"
