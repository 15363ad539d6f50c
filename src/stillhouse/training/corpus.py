"""Plain text that is learnt beside what a method is about, so that a student does not forget how to write.

Every example of an optimizer step brings one text along, drawn with (seed, step, example): the texts of a step do not
depend on how it is split, and a resumed run takes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stillhouse.data.conversation import read
from stillhouse.data.encode import EncodedDataset, Limits, encode_all
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import Template
from stillhouse.mistakes import Mistake
from stillhouse.training import processes
from stillhouse.training.log import logger

Batch = dict[str, Any]
_TEXT = 3  # what a seed is for, beside those of `on_policy`


class Corpus:
    """The texts of a run.

    Args:
        texts: every token of them is learnt.
        collate: makes a batch of items.
        seed: of the run.
    """

    def __init__(self, texts: EncodedDataset, collate: Callable[[Sequence[Any]], Batch], seed: int) -> None:
        self.texts, self.collate, self.seed = texts, collate, seed

    def beside(self, batches: list[Batch], step: int, scored: int) -> list[Batch]:
        """Each of `batches` with a batch of texts, "corpus", as many as it has examples.

        Its "ratio" is that of `scored`, by which the sums of the step are divided, to the tokens of its texts; so the
        texts' part becomes a mean over their own tokens, of all micro-batches and processes.
        """
        made = [self.collate([self.texts[self._drawn(step, int(one))] for one in batch["sample"]]) for batch in batches]
        tokens = processes.summed([float(sum(len(texts["scored_at"]) for texts in made))])[0]
        return [
            {**batch, "corpus": {**texts, "ratio": scored / max(tokens, 1.0)}}
            for batch, texts in zip(batches, made, strict=True)
        ]

    def _drawn(self, step: int, sample: int) -> int:
        return int(np.random.default_rng([self.seed, _TEXT, step, sample]).integers(len(self.texts)))


def read_corpus(path: str, template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> EncodedDataset:
    """The {text} rows of `path`, each cut to `max_length`.

    Raises:
        Mistake: a row is no {text}.
    """
    rows = read_rows(path)
    for row in rows:
        if not read(row).text:
            raise Mistake(row.origin, "is not a {text} row, which data.corpus is made of", "write {text}")
    encoded, census = encode_all([example for row in rows for example in template.examples(row)], tokenizer, limits)
    for line in census.lines():
        logger.info(f"{path}: {line}")
    return encoded
