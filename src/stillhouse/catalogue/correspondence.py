"""The recipe's `alignment` and `vocabulary`: what a method has of them, and what it cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.catalogue.axes import ALIGNERS, MANY, VOCABULARIES
from stillhouse.catalogue.entry import Entry, find, settle
from stillhouse.mistakes import Mistake

# A divergence that looks at the label's own logit cannot do without the label.
_NEED_THE_LABEL = ("dkd",)
_WITHOUT_A_MAP = ("overlap", "cdm")
_SUM = MANY.default


def settled(axis: str, table: Mapping[str, Entry], given: Mapping[str, Any], method: Entry) -> dict[str, Any]:
    """The section `axis` as the recipe writes it, checked, over the defaults of its entry and of the method.

    Raises:
        Mistake: no such entry or setting, or the method cannot have it.
    """
    if "name" not in given:
        raise Mistake(f"{axis}.name", "is missing", f"name one of {', '.join(table)}")
    entry = find(axis, table, given["name"], f"{axis}.name")
    own = getattr(method, axis) or {}
    base = {key: value for key, value in own.items() if key != "name"} if own.get("name") == entry.name else {}
    if method.whole_groups and "merge" in entry.parameters:
        base = {"merge": "mean"}
    chosen = {"name": entry.name, **settle(entry, _settings(given), axis, defaults=base)}
    _check(axis, chosen, method)
    return chosen


def alignment_of(method: Entry, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """How positions correspond: what the recipe says, else the method's own, else by the bytes of tokens."""
    return (
        dict(given)
        if given is not None
        else settled("alignment", ALIGNERS, method.alignment or {"name": "span"}, method)
    )


def vocabulary_of(
    method: Entry, given: Mapping[str, Any] | None, alignment: Mapping[str, Any]
) -> dict[str, Any] | None:
    """How tokens correspond: what the recipe says, else the method's own, else as equals; None: not at all.

    Raises:
        Mistake: the aligner asks for a map of tokens, and there is none; or neither it nor the method has a use for it.
    """
    chosen = dict(given) if given is not None else None
    if chosen is None and method.by_map in ("moves", "ids"):
        default = method.vocabulary or {"name": "exact" if method.name in _NEED_THE_LABEL else "overlap"}
        chosen = settled("vocabulary", VOCABULARIES, default, method)
    matched = alignment["name"] == "dtw_matched"
    if matched and (chosen is None or chosen["name"] in _WITHOUT_A_MAP):
        raise Mistake("alignment.name", "dtw_matched goes by a map of tokens", "add vocabulary: {name: min_edit}")
    if chosen is not None and method.by_map == "never" and not matched:
        raise Mistake("vocabulary", f"{method.name} compares tokens without a map", "remove it")
    if chosen is not None and method.by_map in ("ids", "never") and chosen.get("many", _SUM) != _SUM:
        wrong = f"is of rows that a map moves, and {method.name} moves none"
        raise Mistake("vocabulary.many", wrong, "remove it")
    return chosen


def check(
    method: Entry,
    alignment: Mapping[str, Any] | None,
    vocabulary: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> None:
    """Look at what a recipe says of both axes, each checked by itself already, and at the method's settings beside it.

    Raises:
        Mistake: something of it would count for nothing, or something is missing beside it.
    """
    if method.one_tokenizer:  # and so neither axis
        return
    vocabulary_of(method, vocabulary, alignment_of(method, alignment))
    for name in method.without_map if vocabulary is not None else ():
        if settings[name] != method.parameters[name].default:
            wrong = "is of cross-model attention, in whose place a vocabulary map comes"
            raise Mistake(f"method.{name}", wrong, "remove it, or vocabulary")


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "name"}


def _check(axis: str, chosen: Mapping[str, Any], method: Entry) -> None:
    name, where = chosen["name"], f"{axis}.name"
    if method.one_tokenizer:
        raise Mistake(axis, f"{method.name} compares token by token, with one tokenizer for both sides", "remove it")
    if axis == "alignment":
        if method.aligners and name not in method.aligners:
            raise Mistake(where, f"{method.name} cannot go by '{name}'", f"it takes {', '.join(method.aligners)}")
        if method.whole_groups and chosen.get("merge", "mean") != "mean":
            raise Mistake("alignment.merge", f"{method.name} merges groups itself", "remove it")
        return
    if method.vocabularies and name not in method.vocabularies:
        raise Mistake(where, f"{method.name} cannot go by '{name}'", f"it takes {', '.join(method.vocabularies)}")
    if name in _WITHOUT_A_MAP and method.name in _NEED_THE_LABEL:
        raise Mistake(where, f"{method.name} needs the label among the tokens, and '{name}' may drop it", "take exact")
