"""What a teacher with a tokenizer of its own needs: its encodings, their alignment, and how tokens correspond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stillhouse import alignment, vocabulary
from stillhouse.alignment import DTW, Alignment, EditDistances, Side, one_to_one, texts
from stillhouse.catalogue.correspondence import alignment_of, vocabulary_of
from stillhouse.data.encode import EncodedDataset, Limits, encode_all
from stillhouse.data.pieces import Pieces
from stillhouse.data.rows import Row
from stillhouse.data.templates import Template
from stillhouse.data.templates import build as build_template
from stillhouse.head import Translation
from stillhouse.methods import Method
from stillhouse.methods.contextual import ContextualVocabulary
from stillhouse.methods.pair import TokenizerPair
from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe
from stillhouse.training.log import logger
from stillhouse.training.paired import Align, PairedDataset


@dataclass(frozen=True)
class TwoTokenizers:
    """Everything about a recipe's two tokenizers that is known before any model loads.

    Attributes:
        student: the student's tokenizer.
        teacher: the teacher's.
        alignment: name and settings of the aligner.
        vocabulary: name and settings of the vocabulary map, or None.
        pair: what methods see of them.
        translation: how the teacher's logits become logits over the student's tokens; None where the method compares
            otherwise.
        settings: those of CDM's vocabulary under a method of another name; else None.
    """

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase
    alignment: dict[str, Any]
    vocabulary: dict[str, Any] | None
    pair: TokenizerPair
    translation: Translation | None
    settings: dict[str, Any] | None

    @classmethod
    def of(cls, recipe: Recipe, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> TwoTokenizers:
        """Read both vocabularies, and make, find or read the map between them.

        Raises:
            Mistake: a map of other tokenizers, or a choice that the method cannot go by.
        """
        aligner = alignment_of(recipe.entry, recipe.alignment)
        chosen = vocabulary_of(recipe.entry, recipe.vocabulary, aligner)
        pieces = Pieces.of(student), Pieces.of(teacher)
        ids, many = _map(chosen, student, teacher)
        pair = TokenizerPair(
            *pieces,
            len(student),
            len(teacher),
            ids,
            aligner["name"],
            "mean" if recipe.entry.whole_groups else aligner.get("merge", "first"),
        )
        translation = None
        if chosen is not None and chosen["name"] == "overlap":
            theirs, ours = vocabulary.overlap(pieces[1], pieces[0])
            _say("overlap", f"{len(ours)} tokens are shared: {len(ours) / len(student):.1%} of the student's")
            kept = (ours < len(student)) & (theirs < len(teacher))
            translation = Translation.by_overlap(ours[kept], theirs[kept])
        elif ids is not None and recipe.method["name"] != "cdm" and chosen is not None and chosen["name"] != "cdm":
            translation = Translation.by_map(ids[: len(teacher)], len(student), many)
        under_another = chosen is not None and chosen["name"] == "cdm"
        return cls(student, teacher, aligner, chosen, pair, translation, chosen if under_another else None)

    def given_to(self, method: Method) -> None:
        """Tell a method of the pair."""
        method.tokenizers = self.pair
        if self.settings is not None:
            method.contextual = ContextualVocabulary(self.pair, self.settings)

    def encoded(self, recipe: Recipe, rows: Sequence[Row], template: Template, limits: Limits) -> PairedDataset:
        """Both encodings of the same examples, and their alignment.

        Raises:
            Mistake: no example is left in both.
        """
        name = recipe.teacher.template if recipe.teacher is not None else None
        theirs = build_template(name or recipe.data.template, self.teacher)
        examples: tuple[list[Any], list[Any]] = ([], [])
        unlike: list[str] = []
        for row in rows:
            sides = template.examples(row), theirs.examples(row)
            if len(sides[0]) != len(sides[1]):
                unlike.append(row.origin)
                continue
            for kept, side in zip(examples, sides, strict=True):
                kept += side
        if unlike:
            _say(
                "teacher", f"{len(unlike)} rows are left out, whose turns the templates cut otherwise: {unlike[0]} ..."
            )
        spans = (
            alignment.ALIGNERS[self.alignment["name"]].spans if self.alignment["name"] in alignment.ALIGNERS else None
        )
        encoded: list[EncodedDataset] = []
        for kept, tokenizer, who in zip(examples, (self.student, self.teacher), ("student", "teacher"), strict=True):
            bos = limits.bos if who == "student" else None
            side, census = encode_all(kept, tokenizer, replace(limits, bos=bos), f"encoding for the {who}", spans=spans)
            for line in census.lines():
                _say(f"{recipe.data.train} ({who})", line)
            encoded.append(side)
        paired = PairedDataset(encoded[0], encoded[1], self._align())
        if not len(paired):
            raise Mistake(recipe.data.train, "no example is left in both tokenisations", "raise data.max_length")
        for line in (*paired.coverage.lines(),) if self._align() is not None else ():
            _say(self.alignment["name"], line)
        if paired.unpaired:
            _say("teacher", f"{len(paired.unpaired)} examples are cut away on one side and left out")
        return paired

    def _align(self) -> Align | None:
        """The aligner, or None where it needs predictions."""
        if self.pair.aligns_late:
            return None
        if self.alignment["name"] != "dtw_matched":
            return alignment.build(self.alignment["name"], self.pair.student, self.pair.teacher)
        ids = self.pair.map
        assert ids is not None, "the recipe was checked"
        warped = DTW(EditDistances(texts(self.pair.student, "bare"), texts(self.pair.teacher, "bare")))

        def matched(student: Side, teacher: Side) -> Alignment:
            found = one_to_one(warped.path(student, teacher), student.inputs, teacher.inputs, ids)
            ours = np.flatnonzero(found >= 0)
            return Alignment.one_to_one(ours, found[ours])

        return matched


def _map(
    chosen: dict[str, Any] | None, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> tuple[NDArray[np.int32] | None, Any]:
    """The student token of every teacher token, and what becomes of several for one."""
    if chosen is None or chosen["name"] == "overlap":
        return None, "sum"
    if chosen["name"] == "file":
        found = vocabulary.load(
            chosen["path"], teacher, student, student_rows=len(student), zero_is_none=chosen["zero_is_none"]
        )
    else:
        kind = chosen["static"] if chosen["name"] == "cdm" else chosen["name"]
        ignoring = chosen.get("ignore_space", kind == "exact" and chosen["name"] == "cdm")
        found = vocabulary.cached(kind, teacher, student, ignore_space=bool(ignoring))
    reach = found.coverage
    _say(found.kind, f"reaches {reach.teacher:.1%} of the teacher's tokens and {reach.student:.1%} of the student's")
    return found.ids, chosen.get("many", "sum")


def _say(what: str, line: str) -> None:
    logger.info(f"{what}: {line}")
