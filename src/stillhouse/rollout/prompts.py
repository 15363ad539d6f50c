"""Rows as prompts that a model continues, and the tokens by which it ends a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from stillhouse.data import Row
from stillhouse.data.encode import Limits, encode_prompt
from stillhouse.data.templates import Template
from stillhouse.data.tokenizer import ids_of

_NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Prompts:
    """The prompts of some rows.

    Attributes:
        texts: as the template writes them, uncut.
        input_ids: as the model reads them.
        cut: how many lost tokens to `max_prompt_length`.
    """

    texts: list[str]
    input_ids: list[list[int]]
    cut: int


def encode_prompts(
    rows: Sequence[Row], template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> Prompts:
    """The prompt of each row, encoded as in training.

    Raises:
        Mistake: a row has no prompt, or the template has no place for something in it.
    """
    segments = [template.prompt(row) for row in rows]
    whole = Limits(_NO_LIMIT, _NO_LIMIT, limits.cut, limits.bos)
    input_ids = [encode_prompt(segment, tokenizer, limits) for segment in segments]
    uncut = (encode_prompt(segment, tokenizer, whole) for segment in segments)
    cut = sum(len(ids) < len(all_ids) for ids, all_ids in zip(input_ids, uncut, strict=True))
    return Prompts([segment.text for segment in segments], input_ids, cut)


def end_of_turn(template: Template, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that closes a turn in a chat template (<|im_end|>), often not the tokenizer's end-of-text token.

    Empty where the end-of-text token closes a response, or where no special token does.
    """
    answer = "b"
    example = template.examples(Row({"instruction": "a", "output": answer}, "a row of our own"))[-1]
    if not example.closed:
        return []
    _, _, closing = example.segments[-1].text.rpartition(answer)
    special = set(tokenizer.all_special_ids) | tokenizer.added_tokens_decoder.keys()
    return [token for token in ids_of(tokenizer, closing) if token in special][:1]
