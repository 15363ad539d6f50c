"""HTML that is escaped by construction: every text becomes inert unless this module made it markup."""

from __future__ import annotations

import html
import re

VOID = frozenset({"meta", "br", "hr"})
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_DIRECTION = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = re.compile(rf"[{_CONTROL}{_DIRECTION}\ud800-\udfff]")


class Markup(str):
    """Text that is already HTML; only `tag`, `join` and the package's own constants make it."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """`text` as HTML that shows it; what is Markup already stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(visible(str(text))))


def visible(text: str) -> str:
    """`text` with control, direction-changing and lone surrogate characters shown as U+FFFD."""
    return _INVISIBLE.sub("\ufffd", text)


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element of escaped `children`; a trailing `_` of an attribute's name is dropped and `_` becomes `-`."""
    pairs = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    if not all(_NAME.fullmatch(word) for word in (name, *pairs)):
        raise ValueError(f"not a tag or attribute name: {name!r} {list(pairs)}")
    opening = "".join(f' {key}="{html.escape(visible(str(value)))}"' for key, value in pairs.items())
    if name in VOID:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{join(children)}</{name}>")


def join(children: object, between: str = "") -> Markup:
    """The escaped items of an iterable, one after the other."""
    if isinstance(children, str) or not hasattr(children, "__iter__"):
        raise TypeError("join takes an iterable of children, not one child")
    return Markup(between.join(escape(child) for child in children))  # type: ignore[union-attr]
