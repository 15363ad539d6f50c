"""Responses to tokenised prompts, by whatever engine writes them.

Terms: the *room* is the number of positions that prompt and response may fill together; the *budget* of a prompt is
the number of tokens that its response may have: `max_new_tokens`, or less where the room ends before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.mistakes import Mistake
from stillhouse.progress import track
from stillhouse.rollout.batches import Batches
from stillhouse.rollout.drawing import Seed
from stillhouse.rollout.engine import Asked, Drawn, Engine, Manner
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
    author: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
    description: str = "generating",
) -> list[str]:
    """The texts of `respond`."""
    responses = respond(author, tokenizer, prompts, sampling, seed=seed, batch_size=batch_size, description=description)
    return [response.text for response in responses]


def respond(
    author: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int | Sequence[Seed],
    batch_size: int = 32,
    description: str | None = "generating",
    max_length: int | None = None,
    stop: Sequence[int] = (),
    beside: PreTrainedModel | None = None,
    share: float = 0.0,
) -> list[Response]:
    """One response to each of `prompts` (token ids), in their order.

    It depends on the model, its own seed, its prompt, `sampling` and the engine only, beyond numerical ties. A model's
    mode and the global random state are left as they were.

    Args:
        author: a model, which answers batches of `batch_size`; or another engine, which has its own size.
        seed: of all, with the place of each prompt; or one seed for each.
        batch_size: prompts that a model answers at a time.
        description: of the progress bar; None shows none.
        max_length: prompt and response together have at most this many tokens; the model's own limit always holds.
        stop: token ids that end a response, besides the tokenizer's end-of-text token.
        beside: a second model of this tokenizer, whose probabilities have the share `share` in what a model draws from.

    Raises:
        Mistake: a prompt without tokens, a batch size below 1, or an engine that cannot draw in such a manner.
    """
    if batch_size < 1:
        raise Mistake("batch_size", f"must be at least 1, got {batch_size}")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise Mistake(f"prompt {index + 1}", "has no token", "put text or a beginning-of-text token (bos) into it")
    engine = author
    if isinstance(author, Module):  # an adapter's wrapper is no PreTrainedModel
        engine = Batches(cast("PreTrainedModel", author), batch_size, beside, share)
    assert not isinstance(engine, Module)
    manner = Manner(sampling, _stop_ids(tokenizer, stop), 1 + max(tokenizer.get_vocab().values()))
    budgets = _budgets(prompts, sampling.max_new_tokens, _room(engine.room, max_length))
    seeds = [(seed, index) for index in range(len(prompts))] if isinstance(seed, int) else seed
    responses = [Response("", finished=False, clipped=budget < sampling.max_new_tokens) for budget in budgets]
    places = [place for place, budget in enumerate(budgets) if budget > 0]
    if not places:
        return responses
    asked = [Asked(prompts[place], budgets[place], seeds[place]) for place in places]
    with closing(engine.write(asked, manner)) as written:
        for index, drawn in written if description is None else track(written, description, total=len(asked)):
            place = places[index]
            responses[place] = _response(tokenizer, drawn, manner.stop, clipped=responses[place].clipped)
    return responses


def _stop_ids(tokenizer: PreTrainedTokenizerBase, stop: Sequence[int]) -> list[int]:
    end_of_text: Any = tokenizer.eos_token_id
    return sorted({*stop} if end_of_text is None else {*stop, int(end_of_text)})


def _room(own: int | None, max_length: int | None) -> int | None:
    limits = [limit for limit in (max_length, own) if limit is not None]
    return min(limits, default=None)


def _budgets(prompts: Sequence[Sequence[int]], most: int, room: int | None) -> list[int]:
    return [most if room is None else max(0, min(most, room - len(prompt))) for prompt in prompts]


def _response(tokenizer: PreTrainedTokenizerBase, drawn: Drawn, stop: Sequence[int], *, clipped: bool) -> Response:
    ids = drawn.ids
    end = next((position for position, token in enumerate(ids) if token in stop), len(ids))
    # The clean-up of spaces before punctuation would change what the model wrote.
    text = tokenizer.decode(list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    whole = end + (end < len(ids))
    notes = drawn.log_probability[:whole], drawn.importance[:whole]
    return Response(text, end < len(ids), clipped, ids[:whole], *notes)
