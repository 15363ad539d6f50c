"""What a teacher with a tokenizer of its own needs: its encodings, their alignment, and how tokens correspond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse import alignment, vocabulary
from stillhouse.catalogue.correspondence import alignment_of, vocabulary_of
from stillhouse.data.encode import EncodedDataset, Limits
from stillhouse.data.pieces import Pieces
from stillhouse.data.rows import Row
from stillhouse.data.templates import Template
from stillhouse.data.templates import build as build_template
from stillhouse.head import Translation
from stillhouse.methods import Method
from stillhouse.methods.contextual import ContextualVocabulary
from stillhouse.methods.pair import TokenizerPair
from stillhouse.paired import PairedDataset, Sides, encode_both, examples_of_both
from stillhouse.paired.dataset import Align
from stillhouse.recipe import Recipe
from stillhouse.training.kept import kept_or_made, key_of
from stillhouse.training.log import logger
from stillhouse.training.rewriting import OwnText, encoder


@dataclass(frozen=True)
class TwoTokenizers:
    """Everything about a recipe's two tokenizers that is known before any model loads.

    Attributes:
        student: the student's tokenizer.
        teacher: the teacher's.
        alignment: name and settings of the aligner.
        pair: what methods see of them.
        translation: how the teacher's logits become logits over the student's tokens; None where the method compares
            otherwise.
        contextual: the settings of CDM's vocabulary under a method of another name; else None.
    """

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase
    alignment: dict[str, Any]
    pair: TokenizerPair
    translation: Translation | None
    contextual: dict[str, Any] | None

    @classmethod
    def of(cls, recipe: Recipe, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> TwoTokenizers:
        """Read both vocabularies, and make, find or read the map between them.

        Raises:
            Mistake: a map of other tokenizers, or a choice that the method cannot go by.
        """
        aligner = alignment_of(recipe.entry, recipe.alignment)
        chosen = vocabulary_of(recipe.entry, recipe.vocabulary, aligner)
        found = None if chosen is None else vocabulary.chosen(chosen, teacher, student)
        if found is not None:
            reach = found.coverage
            wide = f"{reach.teacher:.1%} of the teacher's tokens and {reach.student:.1%} of the student's"
            logger.info(f"vocabulary: {found.kind} reaches {wide}")
        pair = TokenizerPair(
            Pieces.of(student),
            Pieces.of(teacher),
            len(student),
            len(teacher),
            None if found is None else found.ids,
            aligner["name"],
            "mean" if recipe.entry.whole_groups else aligner.get("merge", "first"),
        )
        contextual = chosen if chosen is not None and chosen["name"] == "cdm" else None
        own = contextual is not None or recipe.method["name"] == "cdm"
        translation = None if chosen is None or own else _translation(chosen, pair)
        return cls(student, teacher, aligner, pair, translation, contextual)

    def given_to(self, method: Method) -> None:
        """Tell a method of the pair."""
        method.tokenizers = self.pair
        if self.contextual is not None:
            method.contextual = ContextualVocabulary(self.pair, self.contextual)

    def encoded(self, recipe: Recipe, rows: Sequence[Row], template: Template, limits: Limits) -> PairedDataset:
        """Both encodings of the same examples, and their alignment: read where they are kept, else made.

        Raises:
            Mistake: no example is left in both.
        """
        name = recipe.teacher.template if recipe.teacher is not None else None
        theirs = self._template(recipe)
        chosen = [recipe.data.template, name, self.alignment, self.pair.map if self._needs_the_map else None]
        key = key_of((self.student, self.teacher), *chosen, asdict(limits), [(row.origin, row.fields) for row in rows])
        paired = kept_or_made(key, lambda: self._made(recipe.data.train, rows, (template, theirs), limits))
        for line in paired.said:
            logger.info(line)
        return paired

    def own_text(self, recipe: Recipe, rows: Sequence[Row], template: Template, limits: Limits,
                 train: EncodedDataset) -> OwnText:  # fmt: skip
        """What puts the student's text into both tokenisations of `train`, which is of the same rows."""
        examples, _ = examples_of_both(rows, (template, self._template(recipe)))
        spans = alignment.ALIGNERS[self.alignment["name"]].spans or "bytes"
        ours = encoder(self.student, limits, spans), encoder(self.teacher, replace(limits, bos=None), spans)
        return OwnText(train, self.student, examples, ours, self._align(), solid=spans == "solid")

    def _template(self, recipe: Recipe) -> Template:
        """The teacher's."""
        name = recipe.teacher.template if recipe.teacher is not None else None
        return build_template(name or recipe.data.template, self.teacher)

    def _made(
        self, source: str, rows: Sequence[Row], templates: tuple[Template, Template], limits: Limits
    ) -> PairedDataset:
        sides = Sides((self.student, self.teacher), templates)
        name = self.alignment["name"]
        spans = alignment.ALIGNERS[name].spans
        return encode_both(source, rows, sides, limits, spans, self._align(), name)[0]

    @property
    def _needs_the_map(self) -> bool:
        return self.alignment["name"] == "dtw_matched"

    def _align(self) -> Align | None:
        """The aligner, or None where it needs predictions."""
        if self.pair.aligns_late:
            return None
        return alignment.build(self.alignment["name"], self.pair.student, self.pair.teacher, self.pair.map)


def _translation(chosen: Mapping[str, Any], pair: TokenizerPair) -> Translation:
    """Of the tokens that both models predict; a tokenizer may have ids beyond those."""
    assert pair.map is not None
    ids = np.where(pair.map < pair.student_vocabulary, pair.map, -1)[: pair.teacher_vocabulary]
    if chosen["name"] == "overlap":
        theirs = np.flatnonzero(ids >= 0)
        return Translation.by_overlap(ids[theirs], theirs)
    return Translation.by_map(ids, pair.student_vocabulary, chosen["many"])
