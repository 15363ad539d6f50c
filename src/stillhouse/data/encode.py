"""Examples as one tokenizer's ids, with the positions that are scored.

Letters: n tokens of an example; t a position; a *target* is a token that belongs to a response or ends it; position t
is *scored* when token t + 1 is a target: that is the one causal shift of the whole library. The *lead* is what stands
before the first target; its *marker* is the part at its end that a cut keeps.

    text templates:  [bos] ids(prompt) + ids(response) + [eos]            each segment tokenised apart
    chat templates:  [bos] ids(prompt response prompt response ...)       tokenised in one piece, segments by offsets

Then two cuts. A lead over `max_prompt_length` keeps its beginning and its marker; then everything is cut at
`max_length`. `cut="end"` is the DSKD line's pipeline to the token: it keeps the lead's beginning alone, and reads the
names of special tokens in a text as those tokens (otherwise they stay text).

Where tokenizers are to be compared, every target gets the end of its byte span as well; see `spans`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stillhouse.data.dataset import Census, EncodedDataset
from stillhouse.data.example import Example, Segment
from stillhouse.data.spans import UNKNOWN, Spanned, SpanReader, Spans
from stillhouse.data.tokenizer import end_id, leading_ids
from stillhouse.mistakes import Mistake
from stillhouse.progress import track

__all__ = ["Census", "EncodedDataset", "Encoding", "Limits", "encode", "encode_all", "encode_prompt"]

EXAMPLES_A_CALL = 256


@dataclass(frozen=True)
class Limits:
    """How long an example may be, in tokens, and what is put in front of it.

    Attributes:
        max_length: Of the whole.
        max_prompt_length: Of the lead: all before the first response, the beginning-of-text token included.
        cut: What of a longer lead is lost: its middle ("marker"), or its end ("end": parity with the DSKD line).
        bos: Whether the beginning-of-text token comes first; None is the tokenizer's own habit. Never twice.
        scored: Which tokens are learnt: those of responses, or all (as in TAID's repository).
    """

    max_length: int
    max_prompt_length: int
    cut: Literal["marker", "end"] = "marker"
    bos: bool | None = None
    scored: Literal["response", "all"] = "response"

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise Mistake("data.max_length", f"must be at least 2, got {self.max_length}", "512 is usual")
        if not 1 <= self.max_prompt_length <= self.max_length:
            wrong = f"must be from 1 to max_length ({self.max_length}), got {self.max_prompt_length}"
            raise Mistake("data.max_prompt_length", wrong, "half of max_length is usual")
        if self.cut not in ("marker", "end"):
            raise Mistake("data.cut", f"must be 'marker' or 'end', got {self.cut!r}")
        if self.scored not in ("response", "all"):
            raise Mistake("data.scored", f"must be 'response' or 'all', got {self.scored!r}")


@dataclass(frozen=True)
class Encoding:
    """One tokenizer's view of an example.

    Attributes:
        input_ids: [n] int32.
        scored: [n] bool, True where position t predicts `input_ids[t + 1]` and that is a target; never at the last.
        ends: [n] int32, None unless asked for: where each target's byte span ends, counted over the example's responses
            one after the other, each with one virtual byte behind it for the tokens that end it; -1 at all other tokens
            and where a chat template rewrites a response. With `Limits.scored` "all", prompts count as text too.
    """

    input_ids: NDArray[np.int32]
    scored: NDArray[np.bool_]
    ends: NDArray[np.int32] | None = None


@dataclass
class _Cut:
    """An encoding and what it lost."""

    encoding: Encoding
    prompt_cut: bool
    response_cut: bool
    remarks: tuple[str, ...]


@dataclass
class _Tokens:
    """An example's tokens before any cut: ids [n], targets [n], and how many at the lead's end its marker covers.

    `ends` [n] and `remarks` are of their spans, where those were asked for.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    marker: int
    ends: NDArray[np.int32] | None = None
    remarks: tuple[str, ...] = ()


def encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, limits: Limits, spans: Spans | None = None
) -> Encoding:
    """One example's ids and scored positions; no position is scored where the cuts left no target."""
    return _Encoder(tokenizer, limits, spans).encodings([example])[0].encoding


def encode_prompt(segment: Segment, tokenizer: PreTrainedTokenizerBase, limits: Limits) -> list[int]:
    """The ids that a model continues: the same lead, cut in the same way, as `encode` gives."""
    return _Encoder(tokenizer, limits).encodings([Example((segment,), "", closed=True)])[0].encoding.input_ids.tolist()


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    description: str = "encoding",
    spans: Spans | None = None,
) -> tuple[EncodedDataset, Census]:
    """Every example that has something to learn, and the count of what was cut or dropped.

    Args:
        spans: Also find where each target's byte span ends, in all "bytes" or in the "solid" ones, blanks left out.

    Raises:
        Mistake: there are no examples, or none has a scored token left.
    """
    if not examples:
        raise Mistake("data", "there are no examples", "give at least one row")
    encoder = _Encoder(tokenizer, limits, spans)
    census = Census(limits.max_length, limits.max_prompt_length, rows=len({example.origin for example in examples}))
    kept: list[tuple[int, Encoding]] = []
    for start in track(range(0, len(examples), EXAMPLES_A_CALL), description):
        batch = examples[start : start + EXAMPLES_A_CALL]
        for sample, (example, cut) in enumerate(zip(batch, encoder.encodings(batch), strict=True), start):
            if cut.encoding.scored.any():
                kept.append((sample, cut.encoding))
                _count(census, example, cut)
            else:
                census.dropped.append(example.origin)
    if not kept:
        wrong = f"none of {len(examples)} examples has a scored token left at max_length {limits.max_length}"
        raise Mistake(examples[0].origin, wrong, "raise max_length or lower max_prompt_length")
    return _flat(kept, examples), census


def _count(census: Census, example: Example, cut: _Cut) -> None:
    census.examples += 1
    census.prompts_cut += cut.prompt_cut
    census.responses_cut += cut.response_cut
    census.tokens += len(cut.encoding.input_ids)
    census.scored_tokens += int(cut.encoding.scored.sum())
    census.longest = max(census.longest, len(cut.encoding.input_ids))
    census.remarks.update((*example.remarks, *cut.remarks))


def _flat(kept: list[tuple[int, Encoding]], examples: Sequence[Example]) -> EncodedDataset:
    offsets = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum([len(encoding.input_ids) for _, encoding in kept], out=offsets[1:])
    ends = [encoding.ends for _, encoding in kept if encoding.ends is not None]
    return EncodedDataset(
        np.concatenate([encoding.input_ids for _, encoding in kept]),
        np.concatenate([encoding.scored for _, encoding in kept]),
        offsets,
        np.array([sample for sample, _ in kept], dtype=np.int64),
        [examples[sample].origin for sample, _ in kept],
        np.concatenate(ends) if ends else None,
    )


class _Encoder:
    """A tokenizer with limits; what is the same for every example is settled once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limits: Limits, spans: Spans | None = None) -> None:
        self.tokenizer, self.limits = tokenizer, limits
        self.reader = SpanReader(tokenizer, spans, everything=limits.scored == "all") if spans else None
        self.front = self._front()
        self.end = end_id(tokenizer)

    def _front(self) -> list[int]:
        if self.limits.bos is None:
            return leading_ids(self.tokenizer)
        if not self.limits.bos:
            return []
        bos = self.tokenizer.bos_token_id
        if not isinstance(bos, int):
            raise Mistake("data.bos", "this tokenizer has no beginning-of-text token", "set bos: null")
        return [bos]

    def encodings(self, examples: Sequence[Example]) -> list[_Cut]:
        chats = [example for example in examples if _is_chat(example)]
        texts = [example for example in examples if not _is_chat(example)]
        of_chats, of_texts = self._chat_tokens(chats), self._text_tokens(texts)
        return [self._cut(next(of_chats if _is_chat(example) else of_texts)) for example in examples]

    def _text_tokens(self, examples: Sequence[Example]) -> Iterator[_Tokens]:
        texts = [segment.text for example in examples for segment in example.segments]
        views = iter(self._tokenized(texts, split_special_tokens=self.limits.cut == "marker"))
        for example in examples:
            parts = [(segment, next(views)) for segment in example.segments]
            ids = list(chain.from_iterable(view.ids for _, view in parts))
            targets = np.repeat([segment.scored for segment, _ in parts], [len(view.ids) for _, view in parts])
            marker = 0
            if self._over(len(parts[0][1].ids)) and not parts[0][0].scored:
                first, view = parts[0]
                marker = _tokens_after(len(first.text) - first.marker, view.offsets)
            spanned = self.reader.of_text(example, [view for _, view in parts]) if self.reader else None
            yield self._finished(example, ids, targets, marker, spanned)

    def _chat_tokens(self, examples: Sequence[Example]) -> Iterator[_Tokens]:
        texts = ["".join(segment.text for segment in example.segments) for example in examples]
        views = self._tokenized(texts, split_special_tokens=False)
        for example, text, view in zip(examples, texts, views, strict=True):
            offsets = view.offsets
            owners = _owners(text, np.array(offsets, dtype=np.int64).reshape(-1, 2), example.segments)  # [n]
            targets = np.array([segment.scored for segment in example.segments])[owners]  # [n]
            first = example.segments[0]
            lead = _lead(targets)
            marker = 0
            if self._over(lead) and not first.scored:
                marker = _tokens_after(len(first.text) - first.marker, offsets[:lead])
            spanned = self.reader.of_chat(example, text, view, owners) if self.reader else None
            yield self._finished(example, view.ids, targets, marker, spanned)

    def _over(self, lead: int) -> bool:
        return lead + len(self.front) > self.limits.max_prompt_length

    def _tokenized(self, texts: list[str], *, split_special_tokens: bool) -> Sequence[Any]:
        """The fast tokenizer's own views, which hold `ids` and, computed when asked for, `offsets`."""
        if not texts:
            return []
        batch = self.tokenizer(
            texts, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False
        )
        return batch.encodings or []

    def _finished(
        self, example: Example, ids: list[int], targets: NDArray[np.bool_], marker: int, spanned: Spanned | None
    ) -> _Tokens:
        """With the beginning- and end-of-text tokens where they belong."""
        front = [] if ids[: len(self.front)] == self.front else self.front
        end = [] if example.closed else [self.end]
        tokens = _Tokens(
            np.array([*front, *ids, *end], dtype=np.int32),
            np.concatenate([np.zeros(len(front), bool), targets, np.full(len(end), example.segments[-1].scored)]),
            marker,
        )
        if spanned is not None:
            tokens.ends = np.append(np.full(len(front), UNKNOWN), spanned.ends).astype(np.int32)
            tokens.remarks = spanned.remarks
        return tokens

    def _cut(self, tokens: _Tokens) -> _Cut:
        limits, ids, targets, ends = self.limits, tokens.ids, tokens.targets, tokens.ends
        lead = _lead(targets)
        prompt_cut = lead > limits.max_prompt_length
        if prompt_cut:
            tail = min(tokens.marker, limits.max_prompt_length) if limits.cut == "marker" else 0
            kept = np.r_[: limits.max_prompt_length - tail, lead - tail : len(ids)]
            ids, targets = ids[kept], targets[kept]
            ends = ends if ends is None else ends[kept]
        response_cut = bool(targets[limits.max_length :].any())
        ids, targets = ids[: limits.max_length], targets[: limits.max_length]
        ends = ends if ends is None else ends[: limits.max_length]
        learnt = np.ones_like(targets) if limits.scored == "all" else targets
        scored = np.append(learnt[1:], False)  # position t predicts token t + 1
        return _Cut(Encoding(ids, scored, ends), prompt_cut, response_cut, tokens.remarks)


def _is_chat(example: Example) -> bool:
    return example.segments[0].special


def _lead(targets: NDArray[np.bool_]) -> int:
    """How many tokens come before the first target."""
    return int(targets.argmax()) if targets.any() else len(targets)


def _tokens_after(border: int, offsets: Sequence[tuple[int, int]]) -> int:
    """How many tokens at the end reach beyond character `border`: those that hold any of a marker."""
    return sum(1 for _, end in offsets if end > border)


def _owners(text: str, offsets: NDArray[np.int64], segments: Sequence[Segment]) -> NDArray[np.int64]:
    """Which segment each token belongs to: the one that holds its first character that is not white space.

    Only a token that straddles a border makes this a question. "Assistant: " + "Yes" becomes "Assistant", ":", " Yes":
    the last is the response's first word. A straddling token of white space alone stays with where it begins.

    Args:
        offsets: [n, 2], characters.

    Returns:
        [n]
    """
    ends = np.cumsum([len(segment.text) for segment in segments])
    starts, stops = offsets[:, 0], offsets[:, 1]
    last = len(segments) - 1
    owners = np.minimum(np.searchsorted(ends, starts, side="right"), last)
    for token in np.flatnonzero(stops > ends[owners]):
        piece = text[starts[token] : stops[token]]
        blank = len(piece) - len(piece.lstrip())
        if blank < len(piece):
            owners[token] = min(np.searchsorted(ends, starts[token] + blank, side="right"), last)
    return owners
