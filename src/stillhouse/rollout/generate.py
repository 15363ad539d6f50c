"""Responses of a causal language model to tokenised prompts, in batches.

Terms: the *room* is the number of positions that prompt and response may fill together; the *budget* of a prompt is
the number of tokens that its response may have: `max_new_tokens`, or less where the room ends before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.adapters import bare
from stillhouse.mistakes import Mistake
from stillhouse.models import longest_input
from stillhouse.progress import track
from stillhouse.rollout.decoding import write
from stillhouse.rollout.drawing import Beside, Drawing, Seed
from stillhouse.rollout.sampling import Sampling


@dataclass(frozen=True)
class Response:
    """What a model wrote to one prompt.

    Attributes:
        text: up to the first token that ends a text, without special tokens, white space kept.
        finished: whether such a token was written; else the response is broken off at its budget.
        clipped: whether the room left fewer than `max_new_tokens`.
        ids: the tokens of it, the one that ends it included.
        log_probability: of each, by the model at the temperature of sampling, in nats.
        importance: of each, the model's probability over that of what it was drawn from; 1 unless a second model had
            a share in that.
    """

    text: str
    finished: bool
    clipped: bool
    ids: Sequence[int] = ()
    log_probability: Sequence[float] = ()
    importance: Sequence[float] = ()


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
    description: str = "generating",
) -> list[str]:
    """The texts of `respond`."""
    responses = respond(model, tokenizer, prompts, sampling, seed=seed, batch_size=batch_size, description=description)
    return [response.text for response in responses]


def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int | Sequence[Seed],
    batch_size: int,
    description: str | None = "generating",
    max_length: int | None = None,
    stop: Sequence[int] = (),
    beside: PreTrainedModel | None = None,
    share: float = 0.0,
) -> list[Response]:
    """One response to each of `prompts` (token ids), in their order.

    It depends on the model, its own seed, its prompt and `sampling` only, beyond numerical ties. The model's mode and
    the global random state are left as they were.

    Args:
        seed: of all, with the place of each prompt; or one seed for each.
        description: of the progress bar; None shows none.
        max_length: prompt and response together have at most this many tokens; the model's own limit always holds.
        stop: token ids that end a response, besides the tokenizer's end-of-text token.
        beside: a second model of this tokenizer, whose probabilities have the share `share` in what is drawn from.

    Raises:
        Mistake: a prompt without tokens, or a batch size below 1.
    """
    if batch_size < 1:
        raise Mistake("batch_size", f"must be at least 1, got {batch_size}")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise Mistake(f"prompt {index + 1}", "has no token", "put text or a beginning-of-text token (bos) into it")
    model = bare(model)  # its layers have their adapters in place; peft's own `generate` changes the model's defaults
    stop_ids = _stop_ids(tokenizer, stop)
    budgets = _budgets(prompts, sampling.max_new_tokens, _room(model, max_length))
    settings = _settings(model, tokenizer, sampling, stop_ids)
    seeds = [(seed, index) for index in range(len(prompts))] if isinstance(seed, int) else seed
    responses = [Response("", finished=False, clipped=budget < sampling.max_new_tokens) for budget in budgets]
    with _undisturbed(model):
        batches = plan_batches([len(prompt) for prompt in prompts], budgets, batch_size)
        for batch in batches if description is None else track(batches, description, total=len(batches)):
            input_ids, mask = _padded([prompts[index] for index in batch], settings["pad_token_id"])
            reader = None if beside is None else Beside(beside, mask)
            drawing = Drawing(sampling, [seeds[index] for index in batch], reader, share)
            budget = budgets[batch[0]]
            written = write(
                model, input_ids, mask, budget=budget, settings=settings, stop_ids=stop_ids, drawing=drawing
            )
            notes = zip(*(note.tolist() for note in drawing.notes()), strict=True)
            for index, ids, noted in zip(batch, written, notes, strict=True):
                responses[index] = _response(tokenizer, ids, stop_ids, noted, clipped=responses[index].clipped)
    return responses


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


def _stop_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[int]) -> list[int]:
    end_of_text: Any = tokenizer.eos_token_id
    return sorted({*stop} if end_of_text is None else {*stop, int(end_of_text)})


def _room(model: PreTrainedModel, max_length: int | None) -> int | None:
    limits = [limit for limit in (max_length, longest_input(model.config)) if limit is not None]
    return min(limits, default=None)


def _budgets(prompts: Sequence[Sequence[int]], most: int, room: int | None) -> list[int]:
    return [most if room is None else max(0, min(most, room - len(prompt))) for prompt in prompts]


def _settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, stop_ids: list[int]
) -> dict[str, Any]:
    # A model's vocabulary may be padded beyond its tokenizer's (Qwen): those ids are no text and never drawn.
    known = 1 + max(tokenizer.get_vocab().values())
    vocabulary = model.config.get_text_config().vocab_size
    return {
        "do_sample": False,  # `Drawing` leaves one token of every step
        "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
        "suppress_tokens": list(range(known, vocabulary)) or None,
        "eos_token_id": stop_ids,
        # Not the tokenizer's own padding, which the model may have no embedding of, or which may be a word: an n-gram
        # of it is then barred from the response. Where it stands is masked, or behind the end of a response.
        "pad_token_id": next((token for token in stop_ids if token < vocabulary), 0),
    }


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
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


def _padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """`prompts` padded on the left, and their mask, by length, since the padding is also a real token: [B, P]."""
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), int(pad))
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return input_ids, mask


def _response(
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    stop_ids: list[int],
    notes: Sequence[list[float]],
    *,
    clipped: bool,
) -> Response:
    end = next((position for position, token in enumerate(ids) if token in stop_ids), len(ids))
    # The clean-up of spaces before punctuation would change what the model wrote.
    text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    whole = end + (end < len(ids))
    return Response(text, end < len(ids), clipped, ids[:whole], *(note[:whole] for note in notes))
