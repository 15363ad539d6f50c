"""A map from the teacher's vocabulary to the student's, and the file that it is kept in.

The file is the one that DSKD, MCW-KD and CDM read: one JSON object {"<teacher id>": student id, ...} with every
teacher id from 0 on in ascending order, -1 where there is none. What it was made of and for stands beside it, in
`<name>.about.json`; the files that were published have none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stillhouse import __version__, store
from stillhouse.data.pieces import fingerprint
from stillhouse.mistakes import Mistake, shorten
from stillhouse.store.digests import of_bytes
from stillhouse.store.records import dumps
from stillhouse.vocabulary.matching import NONE


class Coverage(NamedTuple):
    """How much of the vocabularies a map reaches.

    Attributes:
        teacher: The share of teacher ids that have a student id.
        student: The share of student ids that some teacher id has.
    """

    teacher: float
    student: float


@dataclass(frozen=True, eq=False)  # == of arrays is no bool
class VocabularyMap:
    """Which student token stands for each teacher token.

    Attributes:
        ids: [V_t] int32, student ids, -1 where there is none.
        student_size: V_s
        kind: "exact", "min_edit", "prefix", or "unknown" of a file that says nothing of itself.
        teacher: The fingerprint of the teacher's tokenizer, or None where the file does not say.
        student: That of the student's.
        counts: How many teacher tokens found theirs in which way; empty where the file does not say.
    """

    ids: NDArray[np.int32]
    student_size: int
    kind: str = "unknown"
    teacher: str | None = None
    student: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def coverage(self) -> Coverage:
        """How much of the two vocabularies the map reaches."""
        hit = np.unique(self.ids[self.ids != NONE])
        return Coverage(float((self.ids != NONE).mean()), len(hit) / self.student_size)

    def inverse(self, *, last: bool = False) -> NDArray[np.int32]:
        """For each student id the first teacher id that it stands for (with `last`, the last one), or -1; [V_s] int32.

        MinED's loss takes the first, CDM's official code the last.
        """
        teachers = np.flatnonzero(self.ids != NONE).astype(np.int32)
        teachers = teachers if last else teachers[::-1]
        back = np.full(self.student_size, NONE, dtype=np.int32)
        back[self.ids[teachers]] = teachers  # of several for one place, numpy keeps the one that is assigned last
        return back

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as `path`, and what it was made of beside it.

        Raises:
            Mistake: the disk refused.
        """
        data = dumps({str(at): found for at, found in enumerate(self.ids.tolist())}, indent=2) + b"\n"
        store.write_bytes(path, data)
        about = {
            "kind": self.kind,
            "teacher": self.teacher,
            "student": self.student,
            "student_size": self.student_size,
            "counts": dict(self.counts),
            "stillhouse": __version__,
            "map": of_bytes(data).xxh3,  # a crash between the two files leaves an old account of a new map
        }
        store.write_json(about_of(path), about)


def about_of(path: str | os.PathLike[str]) -> Path:
    """Where it stands what the map `path` was made of."""
    return Path(path).with_suffix(".about.json")


def load(
    path: str | os.PathLike[str],
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    *,
    teacher_rows: int | None = None,
    student_rows: int | None = None,
    zero_is_none: bool = False,
    require_hash: bool = False,
) -> VocabularyMap:
    """Read a map and check that it is one of these tokenizers.

    Args:
        teacher_rows: The size of the teacher model's vocabulary, where that has more rows than its tokenizer tokens.
        student_rows: That of the student model's.
        zero_is_none: Read 0 as none, as the exact maps that were published with CDM mean it.
        require_hash: Refuse a file that did not come from `VocabularyMap.save`, or has lost its hash.

    Returns:
        The map; teacher ids up to `teacher_rows` that the file lacks have none.

    Raises:
        Mistake: the file is missing, changed, malformed, of other tokenizers, or names tokens that are not there.
    """
    sizes = teacher_rows or size_of(teacher), student_rows or size_of(student)
    found = read(Path(path), *sizes, require_hash=require_hash)
    if zero_is_none:
        found.ids[found.ids == 0] = NONE
    for side, made_for, tokenizer in (("teacher", found.teacher, teacher), ("student", found.student, student)):
        if made_for is not None and made_for != fingerprint(tokenizer):
            wrong = f"was made for another {side} tokenizer than {shorten(str(tokenizer.name_or_path), 60)}"
            raise Mistake(str(path), wrong, "make it again: stillhouse vocab-map")
    return found


def read(path: Path, teacher_size: int, student_size: int, *, require_hash: bool) -> VocabularyMap:
    """As `load`, without a look at whose tokenizers the map is of.

    Raises:
        Mistake: the file is missing, changed, malformed, or names tokens that are not there.
    """
    content = store.read_json(path, require_hash=require_hash)
    about = _about(path, require_hash)
    found = _ids(content, str(path), teacher_size, student_size)
    ids = np.full(teacher_size, NONE, dtype=np.int32)
    ids[: len(found)] = found
    if about is None:
        return VocabularyMap(ids, student_size)
    return VocabularyMap(ids, student_size, about["kind"], about["teacher"], about["student"], about["counts"])


def size_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The greatest id and one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _about(path: Path, required: bool) -> dict[str, Any] | None:
    """What the file beside a map says of it."""
    beside = about_of(path)
    if not required and not beside.exists():
        return None
    about = store.read_json(beside, require_hash=required)
    kinds = {"kind": str, "teacher": str | None, "student": str | None, "counts": dict, "map": str}
    if not isinstance(about, dict) or not all(isinstance(about.get(key), kind) for key, kind in kinds.items()):
        raise Mistake(str(beside), "does not say what the map was made of", "make the map again, or delete this file")
    if of_bytes(store.read_bytes(path, require_hash=required)).xxh3 != about["map"]:
        raise Mistake(str(beside), f"is of another map than {path.name}", "make the map again, or delete this file")
    return about


def _ids(content: Any, where: str, teacher_size: int, student_size: int) -> list[int]:
    """The student ids of a map's file, checked."""
    if not isinstance(content, dict):
        raise Mistake(where, "is no vocabulary map", 'it needs {"0": student id, "1": ...}')
    for expected, (key, value) in enumerate(content.items()):
        if key != str(expected):
            wrong = f"has {shorten(repr(key), 40)} where teacher id {expected} belongs"
            raise Mistake(where, wrong, "ids ascend from 0 without a gap")
        if not isinstance(value, int) or isinstance(value, bool):
            raise Mistake(where, f"maps {key} to {shorten(repr(value), 40)}", "student ids are whole numbers")
        if not NONE <= value < student_size:
            wrong = f"maps {key} to {value}, but the student has {student_size} tokens"
            raise Mistake(where, wrong, "is it a map of another pair?")
    if len(content) > teacher_size:
        wrong = f"maps {len(content)} teacher tokens, but the teacher has {teacher_size}"
        raise Mistake(where, wrong, "is it a map of another pair?")
    return list(content.values())
