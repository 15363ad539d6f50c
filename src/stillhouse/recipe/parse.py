"""From a command line, and the recipe that it names, to checked options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from stillhouse.catalogue import METHODS, NAMED, find, name_key
from stillhouse.mistakes import Mistake, shorten
from stillhouse.recipe.code import CodeOptions
from stillhouse.recipe.document import Located, read_command_line, read_document, read_scalar
from stillhouse.recipe.evaluating import AgreementOptions, EvaluateOptions, JudgeOptions, TasksOptions
from stillhouse.recipe.inspection import InspectOptions, from_recipe
from stillhouse.recipe.names import annotation_at, unknown_key
from stillhouse.recipe.options import (
    DemoOptions,
    ExportOptions,
    GenerateOptions,
    MethodsOptions,
    ReportOptions,
    VocabMapOptions,
)
from stillhouse.recipe.permissions import OfASuite, refuse_from_file
from stillhouse.recipe.schema import Recipe
from stillhouse.recipe.section import Section, Text, Typed, section_in, shown, types_of
from stillhouse.recipe.suite import SuiteOptions

OPTIONS: dict[str, type[Section]] = {
    "sft": Recipe,
    "distill": Recipe,
    "generate": GenerateOptions,
    "evaluate": EvaluateOptions,
    "evaluate tasks": TasksOptions,
    "evaluate judge": JudgeOptions,
    "evaluate agreement": AgreementOptions,
    "evaluate code": CodeOptions,
    "export": ExportOptions,
    "vocab-map": VocabMapOptions,
    "inspect": InspectOptions,
    "report": ReportOptions,
    "suite": SuiteOptions,
    "methods": MethodsOptions,
    "demo": DemoOptions,
}


def parse(verb: str, arguments: Sequence[str], of_a_suite: OfASuite | None = None) -> Any:
    """The options of `verb`: a Recipe for sft and distill, the verb's own dataclass for the others.

    Arguments that are `of_a_suite`, and that nobody typed, may allow no more than any file may.

    Raises Mistake, naming file and line or the command line's option, for whatever is wrong with them.
    """
    return parse_located(verb, arguments, of_a_suite)[0]


def parse_located(verb: str, arguments: Sequence[str], of_a_suite: OfASuite | None = None) -> tuple[Any, Located]:
    """As `parse`, with the places of all keys, so that later checks can name them too (see `at_place`)."""
    schema = OPTIONS[verb]
    located = _gather(verb, schema, arguments)
    try:
        said = {key: value for key, value in located.values.items() if not _typed(located, key, of_a_suite)}
        refuse_from_file(said, of_a_suite)
        if schema is Recipe:
            _settle_verb(verb, located)
        return _build(schema, located.nested()), located
    except Mistake as mistake:
        raise at_place(mistake, located, verb) from None


def _typed(located: Located, key: str, of_a_suite: OfASuite | None) -> bool:
    by_option = located.places.get(key, "").startswith("--")
    return by_option and (of_a_suite is None or key in of_a_suite.typed)


def at_place(mistake: Mistake, located: Located, verb: str) -> Mistake:
    """`mistake` with the file and line, or the option, that said the key it names; unchanged where it names no key."""
    key = mistake.where
    if not all(part.isidentifier() for part in key.split(".")) or annotation_at(OPTIONS[verb], key) is None:
        return mistake
    place = located.place(key)
    if place is None:
        return Mistake(f"{verb}: --{key}", mistake.wrong, mistake.mend)
    return Mistake(place if place.startswith("--") else f"{place}: {key}", mistake.wrong, mistake.mend)


def _gather(verb: str, schema: type[Section], arguments: Sequence[str]) -> Located:
    """The recipe's keys, and over them those of the command line."""
    leaves = dict(_leaves(schema))
    many = [key for key, annotation in leaves.items() if get_origin(annotation) is list]
    switches = [key for key, annotation in leaves.items() if bool in (annotation, *get_args(annotation))]
    given: dict[str, Any] = {}
    for key, value in read_command_line(arguments, many, switches):
        if not key:
            key, value = _bare_word(verb, schema, value, given)
        elif key in given:
            raise Mistake(f"--{key}", "is given twice", "keep one of them")
        if key != "config" and annotation_at(schema, key) is None:
            raise unknown_key(schema, key, verb, "--")
        if value is None:
            raise Mistake(f"--{key}", "needs a value", f"write --{key}=VALUE")
        given[key] = value
    path = given.pop("config", None)
    located = read_document(path) if path is not None else Located()
    for key in [key for key in located.places if key]:
        if annotation_at(schema, key) is None:
            raise unknown_key(schema, key, located.places[key])
    for section in NAMED if schema is Recipe else ():
        if isinstance(located.values.get(section), str):
            located.put(name_key(section), located.values.pop(section), located.places[section])
    if schema is InspectOptions and "recipe" in given:
        _lay_recipe(located, given["recipe"], given)
    for key, value in given.items():
        _override(schema, located, key, value)
    if path is not None and schema is Recipe and located.values.get("name") is None:
        located.put("name", Path(path).stem, path)
    return located


def _bare_word(verb: str, schema: type[Section], word: str, given: dict[str, Any]) -> tuple[str, Any]:
    """A word without dashes is a run's folder for `report`, the kind of a map, and the recipe for the other verbs."""
    if schema is ReportOptions:
        return "runs", [*given.get("runs", []), word]
    if schema is VocabMapOptions and not word.startswith("-"):
        if "kind" in given:
            raise Mistake(verb, f"two kinds are named, '{given['kind']}' and '{shorten(word, 60)}'", "name one")
        return "kind", word
    if word.startswith("-") or not word.endswith((".yaml", ".yml")):
        mend = "a recipe's name ends in .yaml, an option is --key=value"
        raise Mistake(verb, f"cannot tell what '{shorten(word, 60)}' is", mend)
    key = "recipe" if schema is InspectOptions else "config"
    if key in given:
        raise Mistake(verb, f"two recipes are named, '{given[key]}' and '{word}'", "name one")
    return key, word


def _lay_recipe(located: Located, path: str, given: Mapping[str, Any]) -> None:
    """Put what the recipe at `path` says, but where the options or the command line say something in its place."""
    written = read_document(path).values
    name = written.get("method.name", written.get("method"))
    has_teacher = any(key.partition(".")[0] == "teacher" for key in written)
    recipe = parse("sft" if str(name).lower() == "sft" or (name is None and not has_teacher) else "distill", [path])
    replaced = [section for section in NAMED if section in given or name_key(section) in given]
    replaced += ["data", "split", "limit"] if "text" in given else []
    for key, value in from_recipe(recipe).items():
        if key not in replaced and not any(known.partition(".")[0] == key for known in located.places):
            located.put(key, value, path)


def _leaves(schema: type[Section]) -> Iterator[tuple[str, Any]]:
    for name, annotation in types_of(schema).items():
        section = section_in(annotation)
        if section is not None:
            yield from _leaves(section)
        else:
            yield schema.key(name), annotation


def _override(schema: type[Section], located: Located, key: str, value: Any) -> None:
    annotation, place = annotation_at(schema, key), f"--{key}"
    if key == "method" and value == "null":  # as no recipe of it had been given
        located.forget(key)
        return
    section = section_in(annotation) is not None or dict in (annotation, *get_args(annotation))
    if key in NAMED and not (key != "method" and value == "null"):
        key, section = name_key(key), False
    elif section:
        empties = ("null", "{}") if dict in get_args(annotation) else ("null",)
        if value not in empties or type(None) not in get_args(annotation):
            raise Mistake(place, "is a section of keys", f"set them one by one: --{key}.KEY=VALUE")
        located.forget(key)
    if annotation is Any and not (key.startswith("training.") and key.count(".") == 1):
        value = read_scalar(value)
        value = Typed(value) if schema is SuiteOptions and isinstance(value, str) else value
    elif section:
        value = {} if value == "{}" else None
    else:
        value = [Text(item) for item in value] if isinstance(value, list) else Text(value)
    located.put(key, value, place)


def _settle_verb(verb: str, located: Located) -> None:
    """What sft and distill ask of the one Recipe that they share."""
    values = located.values
    name = values.get("method.name")
    entry = find("method", METHODS, name, "method.name") if name is not None else None
    if verb == "sft":
        for section in ("teacher", *(section for section in NAMED if section != "method")):
            if any(key.startswith(f"{section}.") for key in values):
                raise Mistake(section, "is not asked by sft", "remove it, or run stillhouse distill")
        if entry is not None and entry.needs_teacher:
            raise Mistake("method.name", f"{entry.name} learns from a teacher", "run stillhouse distill")
        values.setdefault("method.name", "sft")
    elif entry is None:
        raise Mistake("method.name", "is missing", "name one, such as todi; `stillhouse methods` lists them")
    elif entry.name == "sft":
        raise Mistake("method.name", "sft learns from no teacher", "run stillhouse sft")


def _build(schema: type[Section], tree: dict[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        annotation, key = types_of(schema)[field.name], schema.key(field.name)
        section, value = section_in(annotation), tree.get(field.name)
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if section is not None and (isinstance(value, dict) or (required and value is None)):
            value = _build(section, value or {})
        elif section is not None and value is not None:
            mend = f"write {field.name}: {{{dataclasses.fields(section)[0].name}: ...}}"
            raise Mistake(key, f"is a section of keys, got {shown(value)}", mend)
        elif required and field.name not in tree:
            raise Mistake(key, "is missing", f"give {field.metadata['meaning']}")
        empty_section = value is None and (section is not None or annotation is dict)
        if (field.name in tree or required) and not empty_section:
            values[field.name] = value
    return schema(**values)
