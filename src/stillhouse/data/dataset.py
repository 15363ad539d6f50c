"""Encoded examples in three flat arrays, and the count of what became of each row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from stillhouse.data.example import NORMALISED, REWRITTEN, SPECIAL_TEXT, TURN_APART


class EncodedDataset(Dataset[dict[str, Any]]):
    """n encoded examples, T tokens in all.

    Attributes:
        input_ids: [T] int32.
        scored: [T] bool; see `encode.Encoding`.
        offsets: [n + 1] int64; item i is `offsets[i] : offsets[i + 1]`.
        samples: [n] int64; which of the examples that were given item i is. The same for every tokenizer, though one
            may drop an example that another keeps.
        origins: [n]; where item i was read.
        ends: [T] int32, where byte spans were asked for; see `encode.Encoding`.
    """

    def __init__(
        self,
        input_ids: NDArray[np.int32],
        scored: NDArray[np.bool_],
        offsets: NDArray[np.int64],
        samples: NDArray[np.int64],
        origins: Sequence[str],
        ends: NDArray[np.int32] | None = None,
    ) -> None:
        self.input_ids, self.scored, self.offsets, self.samples = input_ids, scored, offsets, samples
        self.origins, self.ends = tuple(origins), ends

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`: input_ids int64 [n], scored bool [n], sample int, and ends int32 [n] where there are spans."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, stop = self.offsets[index % len(self)], self.offsets[index % len(self) + 1]
        item = {
            "input_ids": self.input_ids[start:stop].astype(np.int64),
            "scored": self.scored[start:stop],
            "sample": int(self.samples[index]),
        }
        return item if self.ends is None else {**item, "ends": self.ends[start:stop]}

    def taken(self, chosen: NDArray[np.bool_]) -> EncodedDataset:
        """The items where `chosen` [n] is True."""
        tokens = np.repeat(chosen, self.lengths)
        return EncodedDataset(
            self.input_ids[tokens],
            self.scored[tokens],
            np.concatenate([[0], self.lengths[chosen].cumsum()]),
            self.samples[chosen],
            [origin for origin, its in zip(self.origins, chosen, strict=True) if its],
            None if self.ends is None else self.ends[tokens],
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n], tokens of each item."""
        return np.diff(self.offsets)


@dataclass
class Census:
    """What became of the rows: every one that was cut or dropped is counted here.

    Attributes:
        rows: Rows that gave at least one example to `encode_all`.
        examples: Examples kept.
        dropped: Origins of the examples with no scored token left.
        prompts_cut: Kept examples whose prompt was longer than `max_prompt_length`.
        responses_cut: Kept examples that lost scored tokens, at least their end, to `max_length`.
        tokens, scored_tokens, longest: Of the kept examples, after cutting.
        remarks: How many kept examples carry which remark, of their template or of their spans.
    """

    max_length: int
    max_prompt_length: int
    rows: int = 0
    examples: int = 0
    dropped: list[str] = field(default_factory=list)
    prompts_cut: int = 0
    responses_cut: int = 0
    tokens: int = 0
    scored_tokens: int = 0
    longest: int = 0
    remarks: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """The counts, as they are written to a run's files."""
        counts = asdict(self)
        counts["dropped"], counts["dropped_first"] = len(self.dropped), self.dropped[:5]
        counts["remarks"] = dict(self.remarks)
        return counts

    def lines(self) -> list[str]:
        """Plain sentences for a log: the size, then only what happened."""
        said = (
            (self.prompts_cut, f"prompts were longer than {self.max_prompt_length} tokens and were cut"),
            (self.responses_cut, f"examples were cut at {self.max_length} tokens and lost the end of a response"),
            (len(self.dropped), f"examples were dropped, no scored token left: {', '.join(self.dropped[:3])}"),
            (self.remarks[TURN_APART], "examples are single turns: the chat template rewrites earlier turns"),
            (self.remarks[SPECIAL_TEXT], "examples name a special token in a message, which is read as that token"),
            (self.remarks[NORMALISED], "examples whose text the tokenizer normalises; their spans are by characters"),
            (self.remarks[REWRITTEN], "examples whose response the chat template rewrites; it has no spans"),
        )
        size = (
            f"{self.rows} rows, {self.examples} examples, {self.tokens} tokens of which {self.scored_tokens} scored, "
            f"the longest {self.longest}"
        )
        return [size, *(f"{count} {what}" for count, what in said if count)]
