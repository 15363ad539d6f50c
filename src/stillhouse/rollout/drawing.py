"""Tokens drawn row by row, each row from a random stream of its own, with notes of how likely they were.

What a row draws depends on its own seed and its own predictions alone: not on the batch that it is written in, nor on
the process. So training on what the student writes does not depend on how a batch is split either.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stillhouse.rollout.sampling import Sampling

Seed = tuple[int, ...]


class Choosing:
    """One token for every row of a step, each by a number of its own stream.

    Args:
        sampling: temperature, top-k and top-p.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._cut = LogitsProcessorList()
        if not sampling.greedy:
            self._cut.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._cut.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self._cut.append(TopPLogitsWarper(sampling.top_p))

    def choose(
        self,
        scores: Tensor,
        streams: Sequence[np.random.Generator],
        theirs: Callable[[], Tensor] | None = None,
        share: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The token of each row [B], its log q before any cut [B], and its importance [B].

        Args:
            scores: [B, V], logits.
            streams: of every row.
            theirs: gives a second model's logits [B, V], whose probabilities have the share `share`.
        """
        temperature = 1.0 if self.sampling.greedy else self.sampling.temperature
        if self.sampling.greedy and theirs is None:
            highest, token = scores.float().max(-1)
            return token, highest - scores.float().logsumexp(-1), torch.ones_like(highest)
        logs = torch.log_softmax(scores.float() / temperature, -1)  # [B, V], what is noted: of all tokens
        own = self._cut(_NO_IDS, scores.float()).softmax(-1)  # [B, V], what is drawn from: perhaps of some  # pyright: ignore[reportArgumentType]
        drawn_from = own
        if theirs is not None:
            drawn_from = (1.0 - share) * own + share * (theirs() / temperature).softmax(-1)
        token = drawn_from.argmax(-1) if self.sampling.greedy else _drawn(drawn_from, streams)  # [B]
        at = token.unsqueeze(-1)
        return token, logs.gather(-1, at).squeeze(-1), (own.gather(-1, at) / drawn_from.gather(-1, at)).squeeze(-1)


_NO_IDS = torch.empty(0, dtype=torch.long)  # a temperature and a cut do not ask what was written


def _drawn(probabilities: Tensor, streams: Sequence[np.random.Generator]) -> Tensor:
    """[B] by the inverse distribution function, in fp64: in fp32 the rare tokens of a large vocabulary vanish."""
    reached = probabilities.double().cumsum(-1)  # [B, V]
    uniform = torch.tensor([stream.random() for stream in streams], dtype=torch.float64)
    place = uniform.to(reached.device).unsqueeze(-1) * reached[:, -1:]
    token = torch.searchsorted(reached, place, right=True).squeeze(-1)
    # Rounding may put a place at the very end, behind the last token that has any probability.
    return torch.where(token < probabilities.shape[-1], token, probabilities.argmax(-1))


def only(token: Tensor, scores: Tensor) -> Tensor:
    """[B, V] like `scores` that leave no choice: -inf but at `token` [B]."""
    return torch.full_like(scores, -torch.inf).scatter(-1, token.unsqueeze(-1), 0.0)


class Drawing(LogitsProcessor):
    """Turns the logits of every step into the choice of one token a row.

    `generate` is to take the likeliest token, which is the one that is left.

    Args:
        sampling: temperature, top-k and top-p.
        seeds: of every row.
        beside: a second model, whose probabilities have the share `share` in what is drawn from.
    """

    def __init__(
        self, sampling: Sampling, seeds: Sequence[Seed], beside: Beside | None = None, share: float = 0.0
    ) -> None:
        self.choosing, self.beside, self.share = Choosing(sampling), beside, share
        self._streams = [np.random.default_rng(seed) for seed in seeds]
        self.places = list(range(len(seeds)))  # of the rows of the coming step, among all
        self._noted: list[tuple[list[int], Tensor, Tensor]] = []  # of steps: rows, their log q, their importance
        self._notes: list[tuple[list[float], list[float]]] = [([], []) for _ in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """One token for every row: `scores` [B, V] with -inf everywhere else."""
        return only(self.draw(input_ids, scores), scores)

    def draw(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The token of every row [B], which has read `input_ids` [B, T], by its logits [B, V]."""
        beside = self.beside
        theirs = None if beside is None else lambda: beside(input_ids, scores)
        streams = [self._streams[place] for place in self.places]
        token, log_probability, importance = self.choosing.choose(scores, streams, theirs, self.share)
        self._noted.append((self.places, log_probability, importance))
        return token

    def notes(self, place: int) -> tuple[list[float], list[float]]:
        """log q of every token that one row has drawn, and its importance; meaningless behind the row's end."""
        for places, logs, importances in self._noted:  # at last: to look at a step at once would wait for the device
            for row, log, importance in zip(places, logs.tolist(), importances.tolist(), strict=True):
                self._notes[row][0].append(log)
                self._notes[row][1].append(importance)
        self._noted.clear()
        return self._notes[place]


class Beside:
    """A second model of the same tokenizer that reads along: its logits after every token that was drawn.

    Args:
        model: in evaluation mode.
        attention_mask: [B, P] of the prompts, padded on the left.
    """

    def __init__(self, model: PreTrainedModel, attention_mask: Tensor) -> None:
        self.model, self.mask = model, attention_mask.to(model.device)
        self._cache: Any = None
        self._placed = "position_ids" in inspect.signature(model.forward).parameters

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Its logits [B, V], where `scores` [B, V] are the first one's; -inf for what the first one may not say."""
        fresh = input_ids.to(self.model.device) if self._cache is None else input_ids[:, -1:].to(self.model.device)
        missing = input_ids.shape[1] - self.mask.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), missing)], -1)
        given: dict[str, Any] = {"past_key_values": self._cache} if self._cache is not None else {}
        if self._placed:
            given["position_ids"] = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -fresh.shape[1] :]
        found: Any = self.model(input_ids=fresh, attention_mask=self.mask, use_cache=True, **given)
        self._cache = found.past_key_values
        logits = found.logits[:, -1].to(scores.device, torch.float32)  # [B, V'], V' may be padded otherwise
        wide = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        shared = min(wide.shape[-1], logits.shape[-1])
        wide[:, :shared] = logits[:, :shared]
        return wide.masked_fill(scores == -torch.inf, -torch.inf)
