"""The responses of one data file in the encodings of one or two tokenizers, ready to be read by both models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.alignment import ALIGNERS, Side
from stillhouse.alignment.spans import covered
from stillhouse.data.collate import Collator
from stillhouse.data.dataset import Census, EncodedDataset
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import pad_id
from stillhouse.evaluation.agreement.pair import Pair
from stillhouse.evaluation.sources import rows_of
from stillhouse.paired import PairedCollator, PairedDataset, Sides, encode_both
from stillhouse.paired.dataset import Collate
from stillhouse.store.digests import of_bytes

if TYPE_CHECKING:
    from stillhouse.recipe import AgreementOptions
    from stillhouse.recipe.data_sets import Source


@dataclass(frozen=True)
class HeldOut:
    """Examples of one data file.

    Attributes:
        dataset: a `PairedDataset` where the teacher reads other ids.
        collate: makes a batch of its items.
        spans: the same examples with spans in bytes, of the student and of the teacher.
        counts: what became of the rows on either side; once where the ids are shared.
        rows: how many were read.
        said: lines for whoever watches.
    """

    dataset: EncodedDataset
    collate: Collate
    spans: tuple[EncodedDataset, EncodedDataset]
    counts: tuple[Census, ...]
    rows: int
    said: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls, source: Source, pair: Pair, options: AgreementOptions) -> HeldOut:
        """Read and encode a data set, and align what two tokenizers make of it.

        Raises:
            Mistake: a row is wrong, or no example has a scored token left.
        """
        rows, remarks = rows_of(source, options.limit)
        path = source.rows
        limits = Limits(options.max_length, options.max_prompt_length, options.cut, options.bos)
        template = build(options.template, pair.student)
        collator = Collator(pad_id(pair.student))
        if pair.aligner is None:
            examples = [example for row in rows for example in template.examples(row)]
            encoded, census = encode_all(examples, pair.student, limits, spans="bytes")
            said = (*remarks, *(f"{path}: {line}" for line in census.lines()))
            return cls(encoded, collator, (encoded, encoded), (census,), len(rows), said)
        theirs = build(options.teacher_template or options.template, pair.teacher)
        sides = Sides((pair.student, pair.teacher), (template, theirs))
        spans = ALIGNERS[pair.aligner["name"]].spans
        paired, counts = encode_both(path, rows, sides, limits, spans, pair.align, pair.aligner["name"])
        measured = paired
        if spans != "bytes":
            measured = encode_both(path, rows, sides, limits, "bytes", None, "bytes")[0]
        both = PairedCollator(collator, Collator(pad_id(pair.teacher)), "first")
        return cls(paired, both, (measured, measured.teacher), counts, len(rows), (*remarks, *paired.said))

    def widths(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """How many bytes of the responses each scored token of an example covers, on either side; -1 if unknown.

        What ends a response covers one, of its own.
        """
        ours, theirs = (_widths(Side.of(side[index])) for side in self.spans)
        return ours, theirs

    @property
    def left_out(self) -> dict[str, Any]:
        """What is not measured, and what is not whole."""
        first = self.counts[0]
        counts: dict[str, Any] = {
            "examples": first.examples + len(first.dropped) - len(self.dataset),
            "rows_cut_into_unlike_turns": self.rows - first.rows,
        }
        for who, census in zip(("student", "teacher"), self.counts, strict=False):
            counts[who] = {
                "without_response": len(census.dropped),
                "prompts_cut": census.prompts_cut,
                "responses_cut": census.responses_cut,
            }
        return counts

    @property
    def hash(self) -> str:
        """Of all that both models are asked: ids, scored positions, alignment."""
        parts = [part for side in self.spans for part in (side.input_ids, side.scored, side.offsets, side.ends)]
        if isinstance(self.dataset, PairedDataset) and self.dataset.alignments is not None:
            parts += self.dataset.alignments.parts
        data = b"".join(np.ascontiguousarray(part).tobytes() for part in parts if part is not None)
        return of_bytes(data).xxh3


def _widths(side: Side) -> NDArray[np.int32]:
    ends = side.spans()
    before = np.concatenate([[side.start], ends[:-1]])
    return np.where((ends >= 0) & (before >= 0), covered(ends, side.start), -1).astype(np.int32)
