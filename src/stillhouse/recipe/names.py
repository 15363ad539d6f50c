"""Which keys there are, and which one a misspelt key was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args

from stillhouse.catalogue import NAMED, name_key
from stillhouse.mistakes import Mistake, shorten
from stillhouse.recipe import lora, trainer_arguments
from stillhouse.recipe.section import Section, section_in, types_of

# A guess must be at least so like the key, of 1: below it, names that have nothing to do with it would be offered.
LEAST_LIKENESS = 0.55


def annotation_at(schema: type[Section], key: str) -> Any:
    """The type of a dotted key; Any where another part of the house settles it, None where there is no such key."""
    name, _, rest = key.partition(".")
    annotation = types_of(schema).get(name)
    if annotation is None or not rest:
        return annotation
    section = section_in(annotation)
    if section is not None:
        return annotation_at(section, rest)
    if annotation is not dict and dict not in get_args(annotation):
        return None
    head = rest.partition(".")[0]
    if schema.key(name) == lora.SECTION:
        return Any if head in lora.arguments() or head in lora.RESERVED else None
    if name == "training":
        return Any if head in trainer_arguments.arguments() or head in trainer_arguments.RESERVED else None
    return Any


def all_keys(schema: type[Section]) -> Iterator[str]:
    """Every key that `schema` has, sections included."""
    for name, annotation in types_of(schema).items():
        key = schema.key(name)
        yield key
        section = section_in(annotation)
        if section is not None:
            yield from all_keys(section)
        elif key == "training":
            yield from (f"training.{argument}" for argument in trainer_arguments.arguments())
        elif key == lora.SECTION:
            yield from (f"{key}.{setting}" for setting in lora.arguments())
        elif key in NAMED:
            yield name_key(key)
            yield from sorted({f"{key}.{name}" for entry in NAMED[key].values() for name in entry.parameters})


def unknown_key(schema: type[Section], key: str, where: str, dashes: str = "") -> Mistake:
    """The Mistake of a key that does not exist, with the nearest that does; `dashes` before both on a command line."""
    parent = key.rpartition(".")[0]
    holder = annotation_at(schema, parent) if parent else None
    if holder not in (None, Any, dict) and dict not in get_args(holder) and section_in(holder) is None:
        return Mistake(where, f"'{dashes}{parent}' has no keys below it, got '{dashes}{shorten(key, 60)}'")
    leaf = key.rpartition(".")[2]
    known = [
        candidate
        for candidate in all_keys(schema)
        # So many keys three sections deep would often resemble one that was meant for elsewhere.
        if not candidate.startswith(f"{lora.SECTION}.") or key.startswith("student") or candidate.endswith(f".{leaf}")
    ]
    guess = meant(key, [*known, *(("config", "print_config", "help") if dashes else ())])
    if parent == lora.SECTION and leaf in lora.SYNONYMS:
        guess = f"{parent}.{lora.SYNONYMS[leaf]}"
    kind = "option" if dashes else "key"
    mend = f"did you mean '{dashes}{guess}'?" if guess else f"known: {', '.join(types_of(schema))}"
    return Mistake(where, f"unknown {kind} '{dashes}{shorten(key, 60)}'", shorten(mend, 130))


def meant(key: str, known: list[str]) -> str | None:
    """The one of `known` most like `key`: its last name above all, then the section that it was written in."""
    folded = key.lower().replace("-", "_")
    whole, leaf = difflib.SequenceMatcher(b=folded), difflib.SequenceMatcher(b=folded.rpartition(".")[2])

    def likeness(candidate: str) -> float:
        whole.set_seq1(candidate)
        leaf.set_seq1(candidate.rpartition(".")[2])
        return 0.6 * leaf.ratio() + 0.4 * whole.ratio()

    best = max(known, key=likeness)
    return best if likeness(best) >= LEAST_LIKENESS else None
