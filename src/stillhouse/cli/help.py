"""What `--help` says, written from the verbs and from the sections of the recipe themselves."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from stillhouse.catalogue import NAMED, name_key
from stillhouse.recipe.parse import OPTIONS
from stillhouse.recipe.schema import Recipe
from stillhouse.recipe.section import Section, section_in, types_of
from stillhouse.recipe.trainer_arguments import DEFAULTS

WIDTH = 110
# What stands before the keys of a verb, where that is no recipe and no file of options.
_SOURCES = {
    "report": "RUN ... ",
    "methods": "",
    "demo": "",
    "vocab-map": "KIND ",
    "suite": "[SUITE.yaml] ",
    "inspect": "[RECIPE.yaml] ",
}


def of_command(summaries: Mapping[str, str]) -> str:
    """The help of `stillhouse` alone."""
    width = 2 + max(map(len, summaries))
    verbs = "\n".join(f"  {name:{width}}{summary}" for name, summary in summaries.items())
    return f"""usage: stillhouse VERB [FILE.yaml] [--key=value ...] [--print_config]

Distil large language models into small ones.

{verbs}

A file is YAML: a recipe for sft and distill, the keys of the verb for others. Every key can be given, or overridden,
as --key=value or --section.key=value; several values as --key one two.
--print_config shows every key with its value, and runs nothing.
stillhouse VERB --help lists the keys of a verb; stillhouse --version says which version this is."""


def of_verb(verb: str, summary: str, example: str) -> str:
    """The help of one verb: what it does, an example, and every key with its default and meaning."""
    schema = OPTIONS[verb]
    source = _SOURCES.get(verb, "[RECIPE.yaml] " if schema is Recipe else "[OPTIONS.yaml] ")
    lines = [
        f"usage: stillhouse {verb} {source}[--key=value ...] [--print_config]",
        "",
        f"{summary[0].upper()}{summary[1:]}.",
        "",
        f"  stillhouse {verb} {example}",
        "",
        *_keys(schema, verb),
    ]
    if schema is Recipe:
        lines += [
            "",
            "--dry-run checks and counts everything, estimates memory, takes one step and leaves nothing behind.",
            "Paths begin where the command is run. A stopped run goes on when its command is given again.",
        ]
    return "\n".join(lines)


def _keys(schema: type[Section], verb: str) -> Iterator[str]:
    types = types_of(schema)
    for field in sorted(dataclasses.fields(schema), key=lambda field: not _must_be_given(field)):
        section, key = section_in(types[field.name]), schema.key(field.name)
        if verb == "sft" and key in ("teacher", *NAMED) and key != "method":
            continue
        if section is not None:
            yield from _keys(section, verb)
        elif key == "training":
            yield from _training()
        else:
            yield _entry(f"{key}{_default(field, verb)}", field.metadata["meaning"])


def _must_be_given(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any], verb: str) -> str:
    if field.name == "method" and verb == "distill":
        return ".name="
    if field.name == "method":
        return ".name=sft"
    if field.name in NAMED:
        made = None if field.default_factory is dataclasses.MISSING else field.default_factory()
        key = name_key(field.name).removeprefix(field.name)
        return f"{key}={'null' if made is None else made['name']}"
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "="
    return f"={_plain(value)}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _training() -> Iterator[str]:
    defaults = ", ".join(f"{name}={_plain(value)}" for name, value in DEFAULTS.items())
    yield _entry("training.KEY=", f"transformers.TrainingArguments' own names, and parity; defaults: {defaults}")


def _entry(key: str, meaning: str) -> str:
    indent = 36
    first = f"  {key:{indent - 2}}"
    text = textwrap.fill(meaning, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * indent)
    return first + text[indent:] if len(first) == indent else f"{first}\n{text}"
