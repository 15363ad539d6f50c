"""Training examples with the student's own response in place of the data set's.

With one tokenizer the student's own tokens are kept as it drew them. With two, the student's text is read anew by both,
so that bytes, and with them the alignment, are those of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stillhouse.alignment import Alignment, Side
from stillhouse.data.encode import EncodedDataset, Limits, encode
from stillhouse.data.example import Example
from stillhouse.data.spans import Spans
from stillhouse.rollout.replay import Rollout

UNREADABLE = "\ufffd"  # what bytes that are no character become
Item = dict[str, Any]
Align = Callable[[Side, Side], Alignment]
Encoder = Callable[[Example], Item]


class OwnTokens:
    """Items of one tokenizer.

    Args:
        train: the training set; a prompt is what comes before the last response of an item, and that alone is learnt.
    """

    def __init__(self, train: EncodedDataset) -> None:
        self.train = train
        self._place = {int(sample): place for place, sample in enumerate(train.samples)}

    def given(self, sample: int) -> Item:
        """The item with the data set's response."""
        return self.train[self._place[sample]]

    def beside(self, sample: int) -> Item:
        """The same, to stand beside the student's: its last response alone is learnt."""
        item = self.given(sample)
        return {**item, "scored": _last_run(item["scored"])}

    def prompt(self, sample: int) -> list[int]:
        """What the student answers."""
        item = self.given(sample)
        return item["input_ids"][: int(_last_run(item["scored"]).argmax()) + 1].tolist()

    def item(self, rollout: Rollout) -> Item | None:
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
        tokenizer: the student's.
        examples: of both sides, in the order of the samples.
        encoders: of both sides; they find byte spans.
        align: None where that waits for predictions.
        solid: whether blanks have no place in those spans.
    """

    def __init__(
        self,
        train: EncodedDataset,
        tokenizer: PreTrainedTokenizerBase,
        examples: tuple[Sequence[Example], Sequence[Example]],
        encoders: tuple[Encoder, Encoder],
        align: Align | None,
        *,
        solid: bool,
    ) -> None:
        super().__init__(train)
        self.tokenizer, self.examples, self.encoders = tokenizer, examples, encoders
        self.align, self.solid = align, solid

    def beside(self, sample: int) -> Item:
        """The data set's item as it is: its alignment is of all its responses."""
        return self.given(sample)

    def item(self, rollout: Rollout) -> Item | None:
        """Both tokenisations of the student's text and their alignment.

        None where the text is no text (bytes that are no character), its template rewrites it, or either tokenizer has
        nothing to learn of it.
        """
        text = self._text(rollout)
        turn = int((np.diff(self.given(rollout.sample)["scored"].astype(np.int8), prepend=0) == 1).sum())
        if UNREADABLE in text:
            return None
        said = text.replace(" ", "") if self.solid else text
        length = None if rollout.finished else len(said.encode())
        sides: list[Item] = []
        for examples, encode_side in zip(self.examples, self.encoders, strict=True):
            example = rewritten(examples[rollout.sample], text, turn)
            side = None if example is None else _ended(encode_side(example), length)
            if side is None or not side["scored"].any():
                return None
            sides.append({**side, "sample": rollout.sample})
        ours, theirs = sides
        item = {**ours, "teacher": theirs, "by_student": True}
        return item if self.align is None else {**item, "alignment": self.align(Side.of(ours), Side.of(theirs))}

    def _text(self, rollout: Rollout) -> str:
        """What was written; a character that was broken off with the response is left out."""
        ids = list(rollout.response[: len(rollout.response) - rollout.finished])
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text if rollout.finished else text.rstrip(UNREADABLE)


def encoder(tokenizer: PreTrainedTokenizerBase, limits: Limits, spans: Spans | None) -> Encoder:
    """What makes an item of an example, but for its sample."""

    def encoded(example: Example) -> Item:
        encoding = encode(example, tokenizer, limits, spans)
        item = {"input_ids": encoding.input_ids.astype(np.int64), "scored": encoding.scored}
        return item if encoding.ends is None else {**item, "ends": encoding.ends}

    return encoded


def rewritten(example: Example, words: str, turn: int) -> Example | None:
    """`example` up to its response number `turn`, from 1, with `words` in that one's place.

    None where the template rewrites what a response says, so that its place is not known.
    """
    place = [place for place, segment in enumerate(example.segments) if segment.scored][turn - 1]
    last = example.segments[place]
    if last.words is None:
        return replace(example, segments=(*example.segments[:place], replace(last, text=words)))
    said = last.words if last.words in last.text else last.words.strip()
    head, found, tail = last.text.rpartition(said)
    if not found and said:
        return None
    told = replace(last, text=head + words + tail, words=words)
    return replace(example, segments=(*example.segments[:place], told))


def _ended(item: Item, length: int | None) -> Item | None:
    """`item` with its last response alone scored; of one of `length` bytes that was broken off, no token that ends it.

    None where the tokenizer's spans do not show which tokens those are.
    """
    scored, ends = _last_run(item["scored"]), item["ends"]
    if length is None or not scored.any():
        return {**item, "scored": scored}
    if ends.max(initial=-1) < 0 and length > 0:
        return None
    begin = max(int(ends[: int(scored.argmax()) + 1].max(initial=0)), 0)  # where earlier responses end
    of_end = ends > begin + length  # [n], up to the virtual byte behind the text
    return {**item, "scored": scored & ~np.append(of_end[1:], False)}


def _last_run(scored: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[n], true at the last positions in a row that are scored."""
    if not scored.any():
        return scored
    stop = len(scored) - int(scored[::-1].argmax())
    before = np.flatnonzero(~scored[:stop])
    start = int(before[-1]) + 1 if len(before) else 0
    run = np.zeros_like(scored)
    run[start:stop] = True
    return run
