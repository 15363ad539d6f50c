"""What writes: one protocol, whatever runs the model.

    respond -> Engine.write -> (place, Drawn), in any order

An engine is given token ids and gives token ids. Templates, texts and counts are `respond`'s.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from stillhouse.rollout.drawing import Seed
from stillhouse.rollout.sampling import Sampling

Running = Literal["batches", "continuous"]  # how a model in this process writes


@dataclass(frozen=True)
class Asked:
    """One prompt.

    Attributes:
        prompt: token ids, at least one.
        budget: how many tokens the response may have, at least one.
        seed: of its own random stream.
    """

    prompt: Sequence[int]
    budget: int
    seed: Seed


@dataclass(frozen=True)
class Manner:
    """How all prompts of a call are answered.

    Attributes:
        sampling: how a token is drawn; its `max_new_tokens` has gone into the budgets.
        stop: token ids that end a response.
        known: how many tokens the tokenizer has; what a model has beyond them is no text and never drawn.
    """

    sampling: Sampling
    stop: Sequence[int]
    known: int


@dataclass(frozen=True)
class Drawn:
    """A response as its tokens, whatever comes after the one that ends it included.

    Attributes:
        ids: token ids.
        log_probability: of each, by the model at the temperature of sampling, before any cut, in nats.
        importance: of each, the model's probability over that of what it was drawn from.
    """

    ids: Sequence[int]
    log_probability: Sequence[float]
    importance: Sequence[float]


class Engine(Protocol):
    """What writes."""

    @property
    def room(self) -> int | None:
        """The most tokens that prompt and response may have together; None where there is no limit."""
        ...

    def write(self, asked: Sequence[Asked], manner: Manner) -> Generator[tuple[int, Drawn]]:
        """A response to each of `asked`, with its place there, in any order.

        Raises:
            Mistake: the engine cannot draw in this manner.
        """
        ...
