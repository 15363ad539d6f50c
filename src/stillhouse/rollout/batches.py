"""The engine that is always there: a model in this process, so many responses at a time, padded on the left."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from stillhouse.adapters import bare
from stillhouse.models import longest_input
from stillhouse.rollout.decoding import Writing, divisible, padded
from stillhouse.rollout.drawing import Beside, Drawing
from stillhouse.rollout.engine import Asked, Drawn, Manner


@dataclass(frozen=True)
class Batches:
    """A model in this process; a response that ends makes room for a prompt that waits, where memory can be divided.

    What is written does not depend on `batch_size`, beyond numerical ties.

    Attributes:
        model: the author, or an adapter around it.
        batch_size: prompts answered at a time.
        beside: a second model of this tokenizer, whose probabilities have the share `share` in what is drawn from.
    """

    model: PreTrainedModel
    batch_size: int
    beside: PreTrainedModel | None = None
    share: float = 0.0

    @property
    def room(self) -> int | None:
        """The model's positions."""
        return longest_input(bare(self.model).config)

    def write(self, asked: Sequence[Asked], manner: Manner) -> Generator[tuple[int, Drawn]]:
        """The longest prompts first."""
        model: Any = bare(self.model)  # its adapters are in place; peft's own `generate` changes the model's defaults
        settings = _settings(model, manner)
        longest = max((len(one.prompt) + one.budget for one in asked), default=0)
        with undisturbed(model):
            if self.beside is not None or not divisible(model, longest):
                yield from self._batch_by_batch(model, asked, manner, settings)
                return
            writing = Writing(model, asked, manner, barred(model, manner.known), settings["pad_token_id"])
            order = sorted(range(len(asked)), key=lambda place: -len(asked[place].prompt))
            for place in writing.run(order, self.batch_size):
                yield place, Drawn(writing.written[place], *writing.drawing.notes(place))

    def _batch_by_batch(
        self, model: Any, asked: Sequence[Asked], manner: Manner, settings: dict[str, Any]
    ) -> Generator[tuple[int, Drawn]]:
        """For models whose memory cannot be divided by rows, and where a second one reads along."""
        lengths, budgets = [len(one.prompt) for one in asked], [one.budget for one in asked]
        for batch in plan_batches(lengths, budgets, self.batch_size):
            input_ids, mask = padded([asked[place].prompt for place in batch], settings["pad_token_id"])
            reader = None if self.beside is None else Beside(self.beside, mask)
            drawing = Drawing(manner.sampling, [asked[place].seed for place in batch], reader, self.share)
            written = model.generate(
                input_ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=GenerationConfig(max_new_tokens=budgets[batch[0]], **settings),
                logits_processor=LogitsProcessorList([drawing]),
            )[:, input_ids.shape[1] :]
            for row, (place, ids) in enumerate(zip(batch, written.tolist(), strict=True)):
                yield place, Drawn(ids, *drawing.notes(row))


def plan_batches(lengths: Sequence[int], budgets: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of prompts in batches of one budget each, the longest first; those with a budget of 0 are in none.

    As many batches as possible are full of prompts of one length, which need no padding; what is left over is batched
    by like length. The longest are first, since a batch that is too large for the memory should fail at once.
    """
    indices = [index for index, budget in enumerate(budgets) if budget > 0]
    indices.sort(key=lambda index: (budgets[index], -lengths[index]))
    batches, left_over = [], []
    for _, group in groupby(indices, key=lambda index: (budgets[index], lengths[index])):
        same = list(group)
        even = len(same) - len(same) % batch_size
        batches += _cut(same[:even], batch_size)
        left_over += same[even:]
    for _, group in groupby(left_over, key=lambda index: budgets[index]):
        batches += _cut(list(group), batch_size)
    return sorted(batches, key=lambda batch: -lengths[batch[0]])


def _cut(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def barred(model: PreTrainedModel, known: int) -> list[int]:
    """The ids that are no text: a model's vocabulary may be padded beyond its tokenizer's (Qwen)."""
    return list(range(known, model.config.get_text_config().vocab_size))


def _settings(model: PreTrainedModel, manner: Manner) -> dict[str, Any]:
    vocabulary = model.config.get_text_config().vocab_size
    return {
        "do_sample": False,  # `Drawing` leaves one token of every step
        "no_repeat_ngram_size": manner.sampling.no_repeat_ngram_size,
        "suppress_tokens": barred(model, manner.known) or None,
        "eos_token_id": list(manner.stop),
        # Not the tokenizer's own padding, which the model may have no embedding of, or which may be a word: an n-gram
        # of it is then barred from the response. Where it stands is masked, or behind the end of a response.
        "pad_token_id": next((token for token in manner.stop if token < vocabulary), 0),
    }


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """`model` in evaluation mode and without generation defaults of its own; all of it restored.

    `generate` fills what a config leaves open from `model.generation_config`, so a fresh config alone does not help.
    """
    training = [module for module in model.modules() if module.training]
    own_defaults = model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own_defaults
        # One by one: a part may have been in evaluation mode while the rest was in training.
        for module in training:
            module.training = True
