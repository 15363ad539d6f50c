"""Imports run one way: the order is the first one that docs/architecture.md draws, and there is no circle anywhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

import pytest

from tests.habits.tree import PACKAGE, ROOT, Source, sources

Layers = dict[str, int]

# Above every layer, because they only start the command, and below every one, because everybody may ask the version.
ENDS = {"__main__": -1, "": 1000}


def layers_of(text: str) -> Layers:
    """Each package's depth (0 at the top) in the first paragraph of `text` that starts with "cli ->"."""
    found = re.search(r"^cli ->.*?(?=\n\s*\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, 'docs/architecture.md must hold the order of the layers in a paragraph that starts with "cli ->"'
    rows = [re.findall(r"\w+", row) for row in found[0].split("->")]
    return {name: depth for depth, row in enumerate(rows) for name in row} | ENDS


def imports(source: Source, modules: frozenset[str]) -> Iterator[tuple[ast.AST, str]]:
    """The modules of the package that a file imports, anywhere in it: a late import is an import."""
    package = source.module if source.path.endswith("__init__.py") else source.module.rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        yield from ((node, name) for name in names if name.partition(".")[0] == PACKAGE)


def part(module: str) -> str:
    """What a module belongs to: "head" for stillhouse.head.rowwise, "" for the package's own __init__."""
    return f"{module}..".split(".")[1]


def violations(tree: Iterable[Source], layers: Layers) -> list[str]:
    """Every import that climbs, every package without a layer, and every circle, one line each."""
    tree = list(tree)
    modules = frozenset(source.module for source in tree)
    wrong = [
        f"{source.path}: '{part(source.module)}' is in no layer of docs/architecture.md"
        for source in tree
        if part(source.module) not in layers
    ]
    between_modules: dict[str, set[str]] = {}
    between_parts: dict[str, set[str]] = {}
    for source in tree:
        here = part(source.module)
        for node, module in imports(source, modules):
            there = part(module)
            if here != there:
                between_parts.setdefault(here, set()).add(there)
            if module != source.module:
                between_modules.setdefault(source.module, set()).add(module)
            if layers.get(there, 1000) < layers.get(here, 1000):
                wrong.append(f"{source.place(node)}: '{here}' is below '{there}' and must not import it")
    for kind, graph in (("packages", between_parts), ("modules", between_modules)):
        wrong.extend(f"{kind} import each other in a circle: {' -> '.join(path)}" for path in circles(graph))
    return wrong


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle for each back edge that a depth-first walk of `graph` meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            found.append([*path[path.index(node) :], node])
        elif node not in done:
            for child in sorted(graph.get(node, ())):
                walk(child, [*path, node])
            done.add(node)

    for node in sorted(graph):
        walk(node, [])
    return found


def test_imports_run_one_way():
    layers = layers_of((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert violations(sources("src"), layers) == []


# The lower half can be used in a notebook: it knows nothing of training, recipes or the command line.
HOMES = {
    "jsonargparse": {"cli", "recipe"},
    "argparse": {"cli", "recipe"},
    "transformers.Trainer": {"training"},
    "transformers.TrainingArguments": {"training", "recipe"},
    "accelerate": {"training"},
    "rouge_score": {"evaluation"},
    "lm_eval": {"evaluation"},
    "matplotlib": {"report"},
}


def strays(tree: Iterable[Source]) -> list[str]:
    """Every import of a library, or of one name of it, outside the packages that are its home."""
    wrong = []
    for source in tree:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            else:
                continue
            for thing, homes in HOMES.items():
                if any(f"{name}.".startswith(f"{thing}.") for name in names) and part(source.module) not in homes:
                    wrong.append(f"{source.place(node)}: {thing} belongs in {' or '.join(sorted(homes))}")
    return wrong


def test_libraries_stay_in_the_packages_that_are_their_home():
    assert strays(sources("src")) == []


def source(path: str, text: str) -> Source:
    return Source(f"src/{PACKAGE}/{path}", text)


ORDER = {"cli": 0, "training": 1, "report": 1, "head": 2, "data": 2, "store": 3, **ENDS}
PLANTED = {
    "climbs": ([source("head/a.py", "from stillhouse.training import run"), source("training/__init__.py", "")], 1),
    "climbs late": ([source("store/a.py", "def f():\n    import stillhouse.cli")], 1),
    "climbs by a relative import": ([source("head/__init__.py", "from ..training import run")], 1),
    "climbs from the root": ([source("__init__.py", "from stillhouse import head"), source("head/__init__.py", "")], 1),
    "has no layer": ([source("helpers/a.py", "")], 1),
    "circle in a layer": (
        [source("head/a.py", "import stillhouse.data.b"), source("data/b.py", "import stillhouse.head.c")],
        1,
    ),
    "circle in a package": (
        [
            source("head/__init__.py", "from stillhouse.head.a import f"),
            source("head/a.py", "from stillhouse.head import g"),
        ],
        1,
    ),
    "falls": ([source("cli/a.py", "import stillhouse.head"), source("head/a.py", "import stillhouse")], 0),
    "sideways": ([source("training/a.py", "import stillhouse.report")], 0),
    "a neighbour by its package's name": (
        [
            source("head/__init__.py", "from stillhouse.head import a"),
            source("head/a.py", "from stillhouse.head import b"),
            source("head/b.py", ""),
        ],
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_import_is_found(case: str):
    tree, expected = PLANTED[case]
    assert len(violations(tree, ORDER)) == expected, violations(tree, ORDER)


def test_layers_are_read_from_the_first_drawing():
    assert layers_of("text\n\ncli -> report, training ->\nhead -> store\n\ncli -> other\n") == {
        "cli": 0, "report": 1, "training": 1, "head": 2, "store": 3, **ENDS,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("head/a.py", "from transformers import AutoModel, Trainer", 1),
        ("training/a.py", "from transformers import Trainer", 0),
        ("head/a.py", "import transformers", 0),
        ("data/a.py", "import jsonargparse.typing", 1),
    ],
)
def test_a_planted_stray_is_found(path: str, text: str, expected: int):
    assert len(strays([source(path, text)])) == expected
