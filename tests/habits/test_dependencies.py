"""What a file imports is declared: an environment made from pyproject.toml alone has all of it, at a pinned version."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable

from tests.habits.tree import PACKAGE, ROOT, Source, sources

# Where a distribution is not named as the module that it brings.
DISTRIBUTIONS = {"yaml": "pyyaml", "rouge_score": "rouge-score", "lm_eval": "lm-eval"}


def strangers(tree: Iterable[Source], declared: set[str]) -> list[str]:
    """Each import of a module that is neither Python's, nor this repository's, nor of a declared distribution."""
    tree = list(tree)
    own = {PACKAGE, "tests", *(source.path.rpartition("/")[2].removesuffix(".py") for source in tree)}
    found = []
    for source in tree:
        for node in ast.walk(source.tree):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names:
                if DISTRIBUTIONS.get(name, name) not in declared:
                    found.append(f"{source.place(node)}: {name}")
    return found


def names(requirements: Iterable[str]) -> set[str]:
    """The distributions that lines such as "torch>=2.9" name."""
    return {match[0].lower() for line in requirements if (match := re.match(r"[\w.-]+", line))}


def declared(*extras: str) -> set[str]:
    """What pyproject.toml asks for, with some of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return names([*project["dependencies"], *(line for extra in extras for line in optional[extra])])


def test_the_package_imports_what_it_declares():
    assert strangers(sources("src"), declared()) == []


def test_tests_and_benchmarks_import_what_developers_install():
    assert strangers([*sources("tests"), *sources("benchmarks")], declared("dev")) == []


def test_what_is_declared_is_pinned():
    pinned = names((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    assert declared("dev", "deepspeed", "eval") - pinned - {PACKAGE} == set()


def test_a_planted_import_is_found():
    planted = Source("src/stillhouse/planted.py", "import json\nimport torch.nn\nfrom rapidfuzz.process import cdist\n")
    assert strangers([planted], {"torch"}) == ["src/stillhouse/planted.py:3: rapidfuzz"]
