"""The public surface changes only on purpose: a new, renamed or lost name shows as a line of surface.txt in review."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import pytest

from stillhouse.catalogue import Entry, Parameter
from stillhouse.recipe.section import Section, setting
from tests.habits.surface import FROZEN, catalogue, exports, options, surface
from tests.habits.tree import Source


def differences(frozen: list[str], now: list[str]) -> list[str]:
    """Lines lost (-) and lines new (+)."""
    lines = difflib.unified_diff(frozen, now, lineterm="", n=0)
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_the_public_surface_is_the_frozen_one():
    changed = differences(FROZEN.read_text(encoding="utf-8").splitlines(), surface())
    if changed:
        shown = "\n".join(changed)
        pytest.fail(
            f"the public surface changed; on purpose? python -m tests.habits.surface --write\n{shown}", pytrace=False
        )


def test_a_planted_change_is_found():
    assert differences(["a", "b"], ["a", "c"]) == ["-b", "+c"]
    assert differences(["a"], ["a"]) == []


def test_exports_are_all_or_what_is_defined():
    with_all = Source(
        "src/stillhouse/head/__init__.py", "from stillhouse.head.a import Head\n__all__ = ['Head']\nx = 1"
    )
    without = Source(
        "src/stillhouse/models.py", "import os\nDTYPES: dict = {}\ndef load(): ...\ndef _own(): ...\nclass A: ..."
    )
    inner = Source("src/stillhouse/head/rowwise.py", "def f(): ...")
    assert [*exports([with_all, without, inner])] == [
        "export stillhouse.head.Head",
        "export stillhouse.models.DTYPES",
        "export stillhouse.models.load",
        "export stillhouse.models.A",
    ]


def test_catalogue_lines_hold_aliases_and_defaults():
    entry = Entry("todi", "paper", "summary", {"scale": Parameter(1.0, "slope", aliases=("todi_scale",))}, ("ToDi",))
    assert [*catalogue("method", {"todi": entry})] == [
        "method todi (also ToDi)",
        "method todi.scale = 1.0 (also todi_scale)",
    ]


@dataclass(frozen=True)
class Inner(Section):
    section = "inner"
    size: int = setting("a size", 3)


@dataclass(frozen=True, kw_only=True)
class Outer(Section):
    model: str = setting("a model")
    inner: Inner = setting("a section", Inner())
    seeds: list[int] = setting("seeds", [1])


def test_option_lines_hold_nested_keys_and_defaults():
    assert [*options({"run": Outer})] == [
        "verb run: Outer",
        "option Outer model = required",
        "option Outer inner.size = 3",
        "option Outer seeds = [1]",
    ]
