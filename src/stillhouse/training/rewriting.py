"""Training examples with the student's own response in place of the data set's.

With one tokenizer the student's own tokens are kept as it drew them. With two, the student's text is read anew by both,
so that bytes, and with them the alignment, are those of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stillhouse.alignment import Alignment, Side
from stillhouse.data.encode import EncodedDataset, Limits, encode
from stillhouse.data.example import Example
from stillhouse.data.spans import Spans
from stillhouse.rollout.replay import Rollout

Item = dict[str, Any]
Align = Callable[[Side, Side], Alignment]
Encoder = Callable[[Example], Item]


class OwnTokens:
    """Items of one tokenizer.

    Args:
        train: the training set; a prompt is what comes before the last response of an item.
    """

    def __init__(self, train: EncodedDataset) -> None:
        self.train = train
        self._place = {int(sample): place for place, sample in enumerate(train.samples)}

    def given(self, sample: int) -> Item:
        """The item with the data set's response."""
        return self.train[self._place[sample]]

    def prompt(self, sample: int) -> list[int]:
        """What the student answers."""
        item = self.given(sample)
        learnt = np.append(False, item["scored"][:-1])  # [n], the tokens of responses
        last = len(learnt) - int(learnt[::-1].argmax())  # behind the last one of them
        begin = last - int((~learnt[:last][::-1]).argmax())
        return item["input_ids"][:begin].tolist()

    def item(self, rollout: Rollout, text: str) -> Item | None:
        """The prompt with the student's tokens, all of them scored, and their notes."""
        ids = np.array([*rollout.prompt, *rollout.response], dtype=np.int64)
        scored = np.zeros(len(ids), dtype=bool)
        scored[len(rollout.prompt) - 1 : -1] = True
        notes = np.array([rollout.log_probability, rollout.importance, rollout.advantage], dtype=np.float64)
        return {"input_ids": ids, "scored": scored, "sample": rollout.sample, "by_student": True, "notes": notes}


class OwnText(OwnTokens):
    """Items of two tokenizers, each reading the same text in its own template.

    Args:
        train: the training set.
        examples: of both sides, in the order of the samples.
        encoders: of both sides; they find byte spans.
        align: None where that waits for predictions.
        solid: whether blanks have no place in those spans.
    """

    def __init__(
        self,
        train: EncodedDataset,
        examples: tuple[Sequence[Example], Sequence[Example]],
        encoders: tuple[Encoder, Encoder],
        align: Align | None,
        *,
        solid: bool,
    ) -> None:
        super().__init__(train)
        self.examples, self.encoders, self.align, self.solid = examples, encoders, align, solid

    def item(self, rollout: Rollout, text: str) -> Item | None:
        """Both tokenisations of the student's text and their alignment; None where either has nothing to learn."""
        said = len(text.replace(" ", "").encode()) if self.solid else len(text.encode())
        sides = [
            _ended(encode(rewritten(examples[rollout.sample], text)), None if rollout.finished else said)
            for examples, encode in zip(self.examples, self.encoders, strict=True)
        ]
        if not all(side is not None and side["scored"].any() for side in sides):
            return None
        ours, theirs = ({**(side or {}), "sample": rollout.sample} for side in sides)
        item = {**ours, "teacher": theirs, "by_student": True}
        return item if self.align is None else {**item, "alignment": self.align(Side.of(ours), Side.of(theirs))}


def encoder(tokenizer: Any, limits: Limits, spans: Spans | None) -> Encoder:
    """What makes an item of an example, but for its sample."""

    def encoded(example: Example) -> Item:
        encoding = encode(example, tokenizer, limits, spans)
        item = {"input_ids": encoding.input_ids.astype(np.int64), "scored": encoding.scored}
        return item if encoding.ends is None else {**item, "ends": encoding.ends}

    return encoded


def rewritten(example: Example, words: str) -> Example:
    """`example` with `words` as its last response, and no other response scored."""
    *before, last = example.segments
    said = last.text if last.words is None else last.words
    head, _, tail = last.text.rpartition(said if said in last.text else said.strip())
    there = last.words is not None  # a chat template writes more around it
    text = head + words + tail if there else words
    segments = (*(replace(segment, scored=False) for segment in before),
                replace(last, text=text, words=words if there else None))  # fmt: skip
    return replace(example, segments=segments)


def _ended(item: Item, length: int | None) -> Item | None:
    """`item`, and of a response of `length` bytes that was broken off, no token that ends one; else None: it was not.

    Gives None where the tokenizer's spans do not show which tokens those are.
    """
    if length is None:
        return item
    ends = item["ends"]
    if ends.max(initial=-1) < 0 and length > 0:
        return None
    of_end = ends > length  # [n], up to the virtual byte behind the text
    return {**item, "scored": item["scored"] & ~np.append(of_end[1:], False)}
