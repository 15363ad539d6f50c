"""The axes, and what of one goes with what of another, as a page: docs/compositions.md is what this gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from stillhouse.catalogue.axes import ALIGNERS, VOCABULARIES
from stillhouse.catalogue.correspondence import alignment_of, check, settled, vocabulary_of
from stillhouse.catalogue.divergences import DIVERGENCES
from stillhouse.catalogue.entry import Entry
from stillhouse.catalogue.methods import METHODS
from stillhouse.catalogue.sources import SOURCES, rollout_of
from stillhouse.mistakes import Mistake

# The sections below `student`, `teacher` and `data`; a test reads each of them, and trains by one.
EXAMPLES: dict[str, str] = {
    "ToDi over CDM's vocabulary, its temperature falling": """\
method: {name: todi, temperature: {schedule: linear, start: 4.0, end: 1.0}}
alignment: {name: entropy_dtw}
vocabulary: {name: cdm, top_k: 100}
""",
    "ToDi in the student's space and reverse KL in the teacher's, where tokens are equal": """\
method: {name: dskd, divergence: todi, s2t_divergence: reverse_kl}
alignment: {name: exact}
""",
    "TAID inside cross-model attention, its target moving from the student to the teacher": """\
method: {name: dskd_cma, divergence: taid, t: {schedule: linear, start: 0.1, end: 1.0}}
""",
    "MCW-KD's transports beside CDM": """\
method: {name: mcw_kd, kd_weight: 0.5, temperature: 1.0}
alignment: {name: entropy_dtw}
vocabulary: {name: cdm}
""",
    "Jensen-Shannon over the shared tokens, an adapter trained on packed batches": """\
student: {lora: {r: 64, lora_alpha: 16}}
data: {packing: true}
method: {name: jsd, beta: 0.3}
alignment: {name: span, merge: mean}
vocabulary: {name: overlap}
""",
    "Multi-Level OT on what the student writes, half of the steps": """\
method: {name: multi_level_ot}
rollout: {source: mixed, share: 0.5, temperature: 0.9}
""",
    "First the projectors alone; then method: {projectors: that run's folder}": """\
student: {frozen: true}
method: {name: dskd_cma}
""",
}

_HEAD = """# What can be combined with what

<!-- Written by `stillhouse methods --compositions`; change src/stillhouse/catalogue instead. -->

A run is a point on these axes. Each is a section or a key of the recipe, and what is said of an axis counts or is
refused in one line before training. Settings, formulas and papers are in [methods.md](methods.md).

| axis | a recipe says | may be |
|---|---|---|"""


def page() -> str:
    """Axes, matrices and examples, in Markdown."""
    with_teacher = {name: entry for name, entry in METHODS.items() if entry.needs_teacher}
    two = {name: entry for name, entry in with_teacher.items() if not entry.one_tokenizer}
    lines = [_HEAD, *_axes()]
    lines += ["", "## Method and aligner\n", "`*` is what a method has unless the recipe says something.\n"]
    lines += _matrix(two, ALIGNERS, _aligns, lambda entry: alignment_of(entry, None)["name"])
    lines += ["", "`dtw_matched` asks for a vocabulary that is a map: `min_edit`, `prefix`, `exact` or `file`."]
    lines += ["", "## Method and vocabulary\n"]
    lines += _matrix(two, VOCABULARIES, _maps, _own_map)
    lines += ["", "A method without any looks at no map of tokens, but an aligner may: `dtw_matched` does."]
    alone = ", ".join(name for name in with_teacher if name not in two)
    lines += [f"Not in these tables: {alone}, for one tokenizer alone."]
    lines += ["", "## Method and who writes\n", "Two tokenizers or one: with two, the student's text is read anew.\n"]
    lines += _matrix(METHODS, SOURCES, _learns, _own_source)
    lines += ["", "## Divergence and method\n", *_divergences()]
    lines += ["", "## Examples\n", "Beside `student`, `teacher` and `data`:\n"]
    lines += [f"{title}:\n\n```yaml\n{text}```\n" for title, text in EXAMPLES.items()]
    return "\n".join(lines)


def _axes() -> Iterator[str]:
    rows = {
        "method": ("method", METHODS),
        "positions that correspond": ("alignment", ALIGNERS),
        "tokens that correspond": ("vocabulary", VOCABULARIES),
    }
    for axis, (section, table) in rows.items():
        yield f"| {axis} | `{section}.name` | {', '.join(table)} |"
    yield f"| who writes the responses | `rollout.source` | {', '.join(SOURCES)} |"
    yield f"| divergence | `method.name`, or `divergence` of a dual space | {', '.join(_compared())} |"
    spaces = ", ".join(name for name, entry in METHODS.items() if entry.has_projectors)
    yield f"| hidden space | `method.name` | the student's and the teacher's: {spaces} |"
    yield "| change over training | any number of a method that is not fixed | a schedule: linear, cosine, steps |"
    yield "| what learns | `student.lora`, `student.frozen` | all weights; an adapter; the method's projectors alone |"
    yield "| layout of a batch | `data.packing`, `data.max_batch_tokens` | padded; packed; by a number of tokens |"
    yield "\nThe last three go with every method, but `student.frozen` with those of hidden spaces alone."


def _compared() -> list[str]:
    return [name for name, entry in DIVERGENCES.items() if entry.needs_teacher]


def _matrix(
    methods: Mapping[str, Entry],
    columns: Mapping[str, Entry],
    goes: Callable[[Entry, str], bool],
    own: Callable[[Entry], str | None],
) -> Iterator[str]:
    yield f"| method | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for name, entry in methods.items():
        cells = ("*" if own(entry) == column else "yes" if goes(entry, column) else "" for column in columns)
        yield f"| {name} | {' | '.join(cells)} |"


def _learns(entry: Entry, source: str) -> bool:
    try:
        rollout_of(entry, {"source": source})
    except Mistake:
        return False
    return True


def _own_source(entry: Entry) -> str:
    return rollout_of(entry, None)["source"]


def _own_map(entry: Entry) -> str | None:
    chosen = vocabulary_of(entry, None, alignment_of(entry, None))
    return None if chosen is None else chosen["name"]


def _aligns(entry: Entry, name: str) -> bool:
    kinds = entry.vocabularies or tuple(VOCABULARIES)
    by_map = {"name": "min_edit" if "min_edit" in kinds else "exact"}
    return goes_together(entry, {"name": name}, by_map if name == "dtw_matched" else None)


def _maps(entry: Entry, name: str) -> bool:
    return goes_together(entry, None, {"name": name})


def goes_together(
    entry: Entry, alignment: Mapping[str, object] | None, vocabulary: Mapping[str, object] | None
) -> bool:
    """Whether a recipe may say this of a method."""
    try:
        found = [
            None if given is None else settled(axis, table, given, entry)
            for axis, table, given in (("alignment", ALIGNERS, alignment), ("vocabulary", VOCABULARIES, vocabulary))
        ]
        check(entry, found[0], found[1], {name: parameter.default for name, parameter in entry.parameters.items()})
    except Mistake:
        return False
    return True


def _divergences() -> Iterator[str]:
    """Which method compares by which, in the student's space and in the teacher's."""
    spaces = {name: entry.parameters for name, entry in METHODS.items() if "divergence" in entry.parameters}
    yield f"| divergence | by itself | {' | '.join(spaces)} |"
    yield f"|---|---|{'---|' * len(spaces)}"
    for name in _compared():
        cells = []
        for settings in spaces.values():
            sides = (("divergence", "student"), ("s2t_divergence", "teacher"))
            cells.append(", ".join(side for key, side in sides if name in (settings[key].choices or ())))
        yield f"| {name} | {'yes' if name in METHODS else ''} | {' | '.join(cells)} |"
    yield "\nstudent, teacher: the space that it may be taken in, by `divergence` and `s2t_divergence`."
