"""Making a map by its name, and keeping it, so that the next run with the same tokenizers only reads it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse.data.pieces import Pieces, fingerprint
from stillhouse.mistakes import Mistake, unknown_name
from stillhouse.store import Absent
from stillhouse.vocabulary.matching import NONE, Matches, exact, overlap, prefix
from stillhouse.vocabulary.min_edit import min_edit
from stillhouse.vocabulary.vocabulary_map import VocabularyMap, load, read, size_of

logger = logging.getLogger(__name__)

Kind = Literal["exact", "min_edit", "prefix"]
KINDS: tuple[Kind, ...] = ("exact", "min_edit", "prefix")
CACHE = "STILLHOUSE_CACHE"

# Goes into the names of cached files: raise it whenever any kind of map comes out otherwise than before.
VERSION = "v1"


def kind_of(name: str, where: str = "kind") -> Kind:
    """The kind that `name` means, "min-edit" or "min_edit" alike.

    Raises:
        Mistake: there is none of that name.
    """
    for kind in KINDS:
        if name.replace("-", "_") == kind:
            return kind
    raise unknown_name(where, "kind of map", name, KINDS)


def build(
    kind: str, teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, *, ignore_space: bool = False
) -> VocabularyMap:
    """Make the map of a kind: "exact", "min_edit" or "prefix".

    Args:
        ignore_space: For "exact": a token without a twin goes to one that differs in the blank before it.

    Raises:
        Mistake: there is no such kind, `ignore_space` with another one, or a tokenizer that is no fast one.
    """
    kind = kind_of(kind)
    found = _matches(kind, Pieces.of(teacher), student_pieces := Pieces.of(student), ignore_space)
    prints = fingerprint(teacher), fingerprint(student)
    return VocabularyMap(found.ids, len(student_pieces), kind, *prints, found.counts)


def cached(
    kind: str,
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str] | None = None,
    *,
    ignore_space: bool = False,
) -> VocabularyMap:
    """The map of a kind, read from `folder` where it is kept already, else made and kept there.

    A kept file is verified and must be of the same tokenizers; one that is damaged is said and made again. Where the
    folder cannot be written, that is said, and the map is as good.

    Args:
        folder: Default: `cache_folder()`.

    Raises:
        Mistake: as `build`.
    """
    kind = kind_of(kind)
    prints = fingerprint(teacher), fingerprint(student)
    name = "-".join([kind, *(["ignore_space"] if ignore_space else []), *(found[:16] for found in prints), VERSION])
    path = (cache_folder() if folder is None else Path(folder)) / f"{name}.json"
    try:
        kept = read(path, size_of(teacher), size_of(student), require_hash=True)
        if (kept.teacher, kept.student) == prints:
            return kept
        logger.warning("%s: was made for other tokenizers; it is made again", path)
    except Absent:
        pass
    except Mistake as mistake:
        logger.warning("%s; it is made again", mistake)
    made = build(kind, teacher, student, ignore_space=ignore_space)
    try:
        made.save(path)
    except Mistake as mistake:
        logger.warning("%s; the map is not kept for the next run", mistake)
    return made


def chosen(
    settings: Mapping[str, Any], teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> VocabularyMap:
    """The map that a recipe's `vocabulary` names, with the settings of the catalogue: "overlap" as a map, too.

    Raises:
        Mistake: a file that is no map of these tokenizers.
    """
    name = settings["name"]
    if name == "overlap":
        pieces = Pieces.of(teacher), Pieces.of(student)
        ids = np.full(len(pieces[0]), NONE, dtype=np.int32)
        theirs, ours = overlap(*pieces)
        ids[theirs] = ours
        return VocabularyMap(ids, len(pieces[1]), "overlap")
    if name == "file":
        return load(settings["path"], teacher, student, zero_is_none=settings["zero_is_none"])
    kind = settings["static"] if name == "cdm" else name
    # CDM's own exact map does not look at blanks.
    ignoring = settings.get("ignore_space", name == "cdm" and kind == "exact")
    return cached(kind, teacher, student, ignore_space=bool(ignoring))


def cache_folder() -> Path:
    """Where maps are kept: `vocabulary` in the folder STILLHOUSE_CACHE, else in the user's own for caches."""
    if chosen := os.environ.get(CACHE):
        return Path(chosen) / "vocabulary"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillhouse" / "vocabulary"


def _matches(kind: Kind, teacher: Pieces, student: Pieces, ignore_space: bool) -> Matches:
    if ignore_space and kind != "exact":
        raise Mistake("ignore_space", f"is not asked by {kind}", "remove it, or take exact")
    match kind:
        case "exact":
            return exact(teacher, student, ignore_space=ignore_space)
        case "min_edit":
            return min_edit(teacher, student)
        case "prefix":
            return prefix(teacher, student)
