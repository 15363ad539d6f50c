"""A recipe's text and a command line as located keys: every value with the line or the option that it came from.

YAML is read node by node, because only nodes know their lines. Plain scalars are typed as in YAML 1.2: `1e-4` is a
number, `no` and `on` are text. PyYAML's own rules (1.1) would read the first as text and the others as booleans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stillhouse.catalogue import NAMED
from stillhouse.mistakes import Mistake, nearest, shorten

# Keys below which any key may follow: the catalogue, transformers, peft or the model settle what they mean.
OPEN_SECTIONS = (*NAMED, "training", "student.config", "student.lora", "evaluate", "set")


@dataclass
class Located:
    """Values by dotted key, and for every key, sections included, the place where it was written."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def place(self, key: str) -> str | None:
        """Where `key`, or the nearest section around it, was written."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key)

    def put(self, key: str, value: Any, place: str) -> None:
        """Set `key`; below a key that holds a dictionary, its entry there."""
        for cut in (place for place, sign in enumerate(key) if sign == "."):
            holder = self.values.get(key[:cut])
            if isinstance(holder, dict):
                self.values[key[:cut]] = {**holder, key[cut + 1 :]: value}
                break
            if key[:cut] in self.values and holder is None:
                del self.values[key[:cut]]  # a section that was null, and has a key now
        else:
            self.values[key] = value
        self.places[key] = place

    def forget(self, key: str) -> None:
        """Drop `key` and everything below it."""
        for keys in (self.values, self.places):
            for known in [known for known in keys if known == key or known.startswith(f"{key}.")]:
                del keys[known]

    def nested(self) -> dict[str, Any]:
        """The values as nested dictionaries."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *sections, leaf = key.split(".")
            branch = tree
            for section in sections:
                branch = branch.setdefault(section, {})
            branch[leaf] = value
        return tree


_CORE_SCALARS = {
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "int": (re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    "float": (
        re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"),
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # 010 is ten, and not eight as in YAML 1.1


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}  # PyYAML's own
    for _name, (_pattern, _first) in _CORE_SCALARS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


_Dumper.add_multi_representer(str, _Dumper.represent_str)  # section.Typed is one


def dump(values: dict[str, Any]) -> str:
    """`values` as the YAML that `read_document` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def read_scalar(text: str) -> Any:
    """A value typed on the command line for a key of no fixed type, read as YAML would."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError:
        return text
    finally:
        loader.dispose()


def read_document(path: str) -> Located:
    """The recipe at `path`.

    Raises Mistake for a missing, empty or malformed file, a key set twice, and a tag that is not plain YAML.
    """
    loader = None
    try:
        loader = _Loader(_text(Path(path)))
        root = loader.get_single_node()
        if root is None:
            raise Mistake(path, "is empty", "a recipe begins with 'student: {model: ...}'")
        if not isinstance(root, yaml.MappingNode):
            raise Mistake(_place(path, root), "a recipe is keys and values, 'student: {model: gpt2}'")
        located = Located({}, {"": path})
        _walk(loader, path, root, "", located)
        return located
    except yaml.YAMLError as error:
        raise _malformed(path, error) from None
    except RecursionError:
        raise Mistake(path, "is nested too deeply for a recipe") from None
    finally:
        if loader is not None:
            loader.dispose()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        siblings = [str(file) for file in path.parent.glob("*") if file.suffix in (".yaml", ".yml")]
        guess = nearest(str(path), siblings)
        raise Mistake(str(path), "no such recipe", f"did you mean '{guess}'?" if guess else "") from None
    except IsADirectoryError:
        raise Mistake(str(path), "is a folder", "name the recipe's .yaml file in it") from None
    except UnicodeDecodeError as error:
        raise Mistake(str(path), f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise Mistake(str(path), f"cannot be read: {error.strerror}") from None
    except ValueError:  # of the system's, which has no such names
        raise Mistake(shorten(repr(str(path)), 80), "cannot be a file's name", "write it in plain characters") from None


def _place(path: str, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


_MENDS = {
    "\\t": "indent with spaces",
    "another document": "a recipe is one document, without '---' in it",
    "for the tag": "remove the tag, the word that begins with '!'",
    "undefined alias": "write the value out, without '*'",
    "recursive": "write the value out, without '&' and '*'",
}


def _malformed(path: str, error: yaml.YAMLError) -> Mistake:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    where = f"{path}:{mark.line + 1}" if mark is not None else path
    mends = (mend for sign, mend in _MENDS.items() if sign in problem)
    return Mistake(where, f"is not plain YAML: {problem}", next(mends, "quote a text that holds ':', '#', '{' or '['"))


def _walk(loader: _Loader, path: str, node: yaml.MappingNode, section: str, located: Located) -> None:
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise Mistake(_place(path, key_node), "a key must be text")
        key = f"{section}.{key_node.value}" if section else key_node.value
        if key in located.places:
            first = located.places[key].rpartition(":")[2]
            raise Mistake(_place(path, key_node), f"'{key}' is set twice, first on line {first}", "keep one of them")
        located.places[key] = _place(path, key_node)
        below_open = section in OPEN_SECTIONS
        all_defaults = key in OPEN_SECTIONS and not value_node.value  # `student.lora: {}` is not the same as none
        if isinstance(value_node, yaml.MappingNode) and not below_open and not all_defaults:
            _walk(loader, path, value_node, key, located)
        else:
            located.values[key] = loader.construct_object(value_node, deep=True)


def read_command_line(
    arguments: Sequence[str], many: Sequence[str], switches: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Every `--key=value` or `--key value` of `arguments`; a bare word as ("", word), a key without a value with None.

    Keys in `many` take several values; keys in `switches` may stand alone and are then true.
    """
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            yield "", word
            continue
        key, equals, value = word[2:].partition("=")
        if key.replace("-", "_") in switches:  # --run-generated-code
            key = key.replace("-", "_")
        if equals:
            yield key, value
        elif key in many and rest and not rest[0].startswith("--"):
            count = next((place for place, other in enumerate(rest) if other.startswith("--")), len(rest))
            yield key, rest[0] if count == 1 else rest[:count]
            del rest[:count]
        elif key in switches and (not rest or rest[0] not in ("true", "false")):
            yield key, "true"
        else:
            yield key, rest.pop(0) if rest and not rest[0].startswith("--") else None
