"""transformers' continuous batching: a response that ends makes room for the next prompt at once.

There is no padding, and no row that waits for the longest of its batch. The streams are the same as of `Batches`, row
by row, so the same text is written, beyond numerical ties.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor
from transformers.generation.continuous_batching.requests import FutureRequestState

from stillhouse.adapters import bare
from stillhouse.mistakes import Mistake, shorten
from stillhouse.models import longest_input
from stillhouse.rollout.batches import barred, undisturbed
from stillhouse.rollout.drawing import Choosing, only
from stillhouse.rollout.engine import Asked, Drawn, Manner

PAGE = 64  # tokens that a page of the cache holds
FED = 2048  # tokens of a forward, at most; a prompt may be read in several
WAIT = 1.0  # seconds, after which it is looked whether the manager's thread is alive


@dataclass(frozen=True)
class Continuous:
    """A model in this process, up to `batch_size` responses at a time.

    It writes in the precision of its weights: the manager's thread knows no autocast of the caller's.

    Attributes:
        model: the author, or an adapter around it; it stays as it was.
        batch_size: responses that are written at a time, which is also the size of the cache.
    """

    model: PreTrainedModel
    batch_size: int

    @property
    def room(self) -> int | None:
        """The model's positions."""
        return longest_input(bare(self.model).config)

    def write(self, asked: Sequence[Asked], manner: Manner) -> Generator[tuple[int, Drawn]]:
        """As they come to an end.

        Raises:
            Mistake: the model's attention or cache is not one that can be batched so.
        """
        model: Any = bare(self.model)
        drawing = _Drawing(manner, barred(model, manner.known), asked)
        # The manager seeds all generators; what goes wrong in its thread is said once, by `_unfit`.
        with _own_generators(model.device), undisturbed(model), _quiet():
            try:
                config = GenerationConfig(do_sample=False, eos_token_id=list(manner.stop))
                manager = model.init_continuous_batching(config, self._config(asked))
            except (ValueError, AttributeError, KeyError, NotImplementedError) as error:
                raise _unfit(model, error) from error
            processors = manager.logit_processor
            processors.logits_processor = LogitsProcessorList([drawing])
            processors.tensors_required, processors.do_processing = 1, True
            manager.start()
            try:
                for place, one in enumerate(asked):
                    manager.add_request(
                        list(one.prompt), str(place), max_new_tokens=one.budget, eos_token_id=list(manner.stop)
                    )
                for _ in asked:
                    place, ids = _next(manager, model)
                    yield place, drawing.drawn(place, ids)
            finally:
                manager.stop(block=True, hard_stop=True)
                manager.destroy()

    def _config(self, asked: Sequence[Asked]) -> ContinuousBatchingConfig:
        longest = max(len(one.prompt) + one.budget for one in asked)
        at_once = min(self.batch_size, len(asked))
        return ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=at_once * (-(-longest // PAGE) + 1),
            max_batch_tokens=max(at_once, min(FED, sum(len(one.prompt) for one in asked))),
            max_requests_per_batch=at_once,
            # `_Drawing` runs on the host between two forwards: no graph, and no second batch in flight.
            use_cuda_graph=False,
            use_async_batching=False,
            allow_block_sharing=False,
            auto_switch_to_flash=False,
        )


class _Drawing(ContinuousBatchingLogitsProcessor):
    """Leaves one token to every request of a step, drawn from the request's own stream."""

    supported_kwargs: ClassVar[dict[str, type]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, manner: Manner, no_text: list[int], asked: Sequence[Asked]) -> None:
        self._choosing = Choosing(manner.sampling)
        self._streams = [np.random.default_rng(one.seed) for one in asked]
        self._notes: list[list[Tensor]] = [[] for _ in asked]
        size = manner.sampling.no_repeat_ngram_size
        self._ngrams = NoRepeatNGramLogitsProcessor(size) if size else None
        self._no_text = no_text
        self._now: list[tuple[int, list[int]]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """A request has no arguments: its place among all is its name."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        """Which requests the rows of the coming step are of, and what each has read."""
        states = [request.state for request in requests_with_new_token]
        self._now = [(int(state.request_id), state.initial_tokens + state.generated_tokens) for state in states]
        return torch.zeros(len(states), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """One token for every row: `scores` [R, V] with -inf everywhere else.

        The rows behind the B that are drawn are of requests whose prompt is not read to its end; nobody takes them.
        """
        scores, rest = scores[: len(self._now)], scores[len(self._now) :]  # [B, V]
        if not len(scores):
            return rest
        if self._ngrams is not None:
            rows = [
                self._ngrams(torch.tensor([read], device=scores.device), scores[row : row + 1])  # pyright: ignore[reportArgumentType]
                for row, (_, read) in enumerate(self._now)
            ]
            scores = torch.cat(rows)
        if self._no_text:
            scores[:, self._no_text] = -torch.inf
        token, *noted = self._choosing.choose(scores, [self._streams[place] for place, _ in self._now])
        for (place, _), note in zip(self._now, torch.stack(noted, -1), strict=True):  # [B, 2]
            self._notes[place].append(note)
        return torch.cat([only(token, scores), rest])

    def drawn(self, place: int, ids: list[int]) -> Drawn:
        """What became of the request at `place`."""
        log_probability, importance = torch.stack(self._notes[place]).T.tolist()  # [2, steps]
        return Drawn(ids, log_probability, importance)


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("ContinuousBatchingLogger")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _next(manager: Any, model: PreTrainedModel) -> tuple[int, list[int]]:
    """The next request that has come to an end: its place, and its tokens."""
    while True:
        found = manager.get_result(timeout=WAIT)
        if found is not None and found.error is not None:
            raise _unfit(model, found.error)
        if found is not None:
            return int(found.request_id), list(found.generated_tokens)
        if not manager.is_running():
            raise _unfit(model, "its thread has ended")


def _unfit(model: PreTrainedModel, why: object) -> Mistake:
    wrong = f"{type(model).__name__} cannot be batched so: {shorten(str(why), 70)}"
    return Mistake("engine: continuous", wrong, "write engine: batches")


def _own_generators(device: torch.device) -> AbstractContextManager[None]:
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device.index or 0], device_type=device.type)
