"""What users can name, as one sorted list: exports, verbs, options with their defaults, divergences and methods.

`python -m tests.habits.surface --write` freezes the list anew in surface.txt, where the change is then read in review.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stillhouse.catalogue import DIVERGENCES, METHODS, Entry
from stillhouse.recipe.parse import OPTIONS
from stillhouse.recipe.section import Section, section_in, types_of
from stillhouse.recipe.trainer_arguments import DEFAULTS
from tests.habits.tree import Source, sources

FROZEN = Path(__file__).with_name("surface.txt")


def exports(tree: Iterable[Source]) -> Iterator[str]:
    """Public names of packages and of the modules beside them: `__all__`, else what is defined there."""
    for source in tree:
        public_module = source.path.endswith("__init__.py") or source.module.count(".") == 1
        if public_module and not any(part.startswith("_") for part in source.module.split(".")):
            yield from (f"export {source.module}.{name}" for name in _public(source.tree))


def _public(tree: ast.Module) -> Iterator[str]:
    """Names in `__all__`; without one, public definitions and constants, but not what is imported."""
    defined: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            if "__all__" in names and node.value is not None:
                yield from ast.literal_eval(node.value)
                return
            defined += names
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.append(node.name)
    yield from (name for name in defined if not name.startswith("_"))


def catalogue(kind: str, table: Mapping[str, Entry]) -> Iterator[str]:
    """Names with their aliases, and parameters with their defaults and aliases."""
    for name, entry in table.items():
        yield f"{kind} {name}{_aliases(entry.aliases)}"
        for key, parameter in entry.parameters.items():
            yield f"{kind} {name}.{key} = {parameter.default!r}{_aliases(parameter.aliases)}"


def _aliases(names: tuple[str, ...]) -> str:
    return f" (also {', '.join(names)})" if names else ""


def options(verbs: Mapping[str, type[Section]]) -> Iterator[str]:
    """Verbs, and the keys of what each may be told, with their defaults."""
    for verb, schema in verbs.items():
        yield f"verb {verb}: {schema.__name__}"
    for schema in set(verbs.values()):
        yield from (f"option {schema.__name__} {key} = {default}" for key, default in _keys(schema))


def _keys(schema: type[Section]) -> Iterator[tuple[str, Any]]:
    types = types_of(schema)
    for field in dataclasses.fields(schema):
        inner = section_in(types[field.name])
        if inner is not None:
            yield from _keys(inner)
        elif field.default is not dataclasses.MISSING:
            yield schema.key(field.name), repr(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            yield schema.key(field.name), repr(field.default_factory())
        else:
            yield schema.key(field.name), "required"


def surface() -> list[str]:
    """The whole list."""
    lines = {
        *exports(sources("src")),
        *catalogue("divergence", DIVERGENCES),
        *catalogue("method", METHODS),
        *options(OPTIONS),
        *(f"option Recipe training.{key} = {default!r}" for key, default in DEFAULTS.items()),
    }
    return sorted(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        FROZEN.write_text("\n".join(surface()) + "\n", encoding="utf-8")
    else:
        sys.exit("python -m tests.habits.surface --write")
