"""The repository as its own tests read it: files as text and syntax trees, nothing imported."""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "stillhouse"


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the repository's root and its text. A test may invent one."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree of the text."""
        return ast.parse(self.text, self.path)

    @cached_property
    def module(self) -> str:
        """The dotted name under which the file is imported: "stillhouse.head.rowwise"."""
        parts = Path(self.path).with_suffix("").parts
        parts = parts[1:] if parts[0] == "src" else parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def place(self, node: ast.AST) -> str:
        """Where `node` is, as editors open it: "src/stillhouse/recipe.py:17"."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


@cache
def files() -> tuple[str, ...]:
    """Every file of the project, from its root: all but git's own and what .gitignore names."""
    patterns = [".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split())]
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in patterns)]
        found += [(Path(folder) / name).relative_to(ROOT).as_posix() for name in names]
    return tuple(sorted(found))


@cache
def sources(folder: str) -> tuple[Source, ...]:
    """Every Python file below `folder`: "src", "tests" or "benchmarks"."""
    found = tuple(
        Source(path, (ROOT / path).read_text(encoding="utf-8"))
        for path in files()
        if path.startswith(f"{folder}/") and path.endswith(".py")
    )
    assert found or folder == "benchmarks", f"no Python file below {folder}: a check of nothing would always pass"
    return found


def dotted(node: ast.AST) -> str:
    """The dotted name that an expression spells ("torch.load"), or "" where it is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""
