"""Responses written in stretches: rows that have ended leave their batch, and prompts that wait come in for them.

A batch is as slow as its longest response, and most of its time may go to rows that ended long ago. Here a stretch ends
as soon as an eighth of the rows has: their keys and values are dropped, those of the next prompts are laid beside the
rest, and the next stretch goes on where this one stopped. Terms: a *row* is a response under way, T what it has read,
padding on its left included.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, NoRepeatNGramLogitsProcessor, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from stillhouse.rollout.drawing import Drawing
from stillhouse.rollout.engine import Asked, Manner

# Of the rows of a stretch, the share that has to end before it is over: to begin anew takes as long as a few steps.
ENDED = 0.125


def divisible(model: Any, longest: int) -> bool:
    """Whether rows of what a model remembers can be told apart, for texts of up to `longest` tokens.

    Not where it keeps something else than keys and values, or would forget what is behind a window of its attention:
    how much it has forgotten is the same number for all rows of its cache.
    """
    if model._is_stateful or not model._supports_default_dynamic_cache():
        return False
    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > longest)
        for layer in DynamicCache(config=model.config).layers
    )


class Writing:
    """The rows under way, and what it takes to go on with them.

    Args:
        model: in evaluation mode, and `divisible`.
        asked: all prompts.
        manner: how they are answered.
        barred: ids that are no text.
        filler: an id that stands where nothing is read.
    """

    def __init__(
        self, model: PreTrainedModel, asked: Sequence[Asked], manner: Manner, barred: Sequence[int], filler: int
    ) -> None:
        self.model, self.asked, self.filler = model, asked, filler
        self.drawing = Drawing(manner.sampling, [one.seed for one in asked])
        self.written: list[list[int]] = [[] for _ in asked]
        self._ends = torch.tensor(manner.stop, dtype=torch.long, device=model.device)
        self._barred = torch.tensor(barred, dtype=torch.long, device=model.device)
        size = manner.sampling.no_repeat_ngram_size
        self._ngrams = NoRepeatNGramLogitsProcessor(size) if size else None
        known = inspect.signature(model.forward).parameters
        self._placed, self._last_alone = "position_ids" in known, "logits_to_keep" in known

    @torch.no_grad()
    def run(self, order: Sequence[int], batch_size: int) -> Iterator[int]:
        """Write every response, up to `batch_size` at a time, and give the place of each as it ends."""
        waiting, rows = list(order), None
        while waiting or rows is not None:
            free = batch_size - (0 if rows is None else len(rows.places))
            if waiting and free >= max(1, int(ENDED * batch_size)):
                fresh, ended = self._after(*self._begun(waiting[:free]))
                del waiting[:free]
                yield from ended
                rows = fresh if rows is None else rows if fresh is None else rows.beside(fresh, self.filler)
            if rows is not None:
                rows, ended = self._after(*self._stretch(rows))
                yield from ended

    def _begun(self, places: list[int]) -> tuple[_Rows, Tensor]:
        """Rows that have read their prompts, and the first token of each: [R, 1]."""
        read, mask = padded([self.asked[place].prompt for place in places], self.filler)
        rows = _Rows(
            places, read.to(self.model.device), mask.to(self.model.device), Cache(layer_class_to_replicate=RoomyLayer)
        )
        return rows, self._next(rows, rows.read, rows.read, rows.mask).unsqueeze(-1)

    def _stretch(self, rows: _Rows) -> tuple[_Rows, Tensor]:
        """The tokens [R, steps] until enough rows have ended: by a stop token, or since they may have no more."""
        left = torch.tensor(
            [self.asked[place].budget - len(self.written[place]) for place in rows.places], device=rows.read.device
        )
        enough, ended = max(1, int(ENDED * len(left))), torch.zeros_like(left, dtype=torch.bool)
        read, mask, start = rows.read, rows.mask, rows.read.shape[1]
        while True:
            token = self._next(rows, read, read[:, -1:], mask).masked_fill(ended, self.filler)
            read = torch.cat([read, token.unsqueeze(-1)], -1)
            # Who has ended moves on no more: its position may be the model's last.
            mask = torch.cat([mask, (~ended).to(mask.dtype).unsqueeze(-1)], -1)
            ended |= torch.isin(token, self._ends) | (left <= read.shape[1] - start)
            if int(ended.sum()) >= enough:
                return rows, read[:, start:]

    def _next(self, rows: _Rows, read: Tensor, fed: Tensor, mask: Tensor) -> Tensor:
        """The next token of each row [R]; `fed` is the end of what it has `read` that the cache does not hold."""
        given: dict[str, Any] = {"logits_to_keep": 1} if self._last_alone else {}
        if self._placed:
            given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -fed.shape[1] :]
        model: Any = self.model
        found = model(input_ids=fed, attention_mask=mask, past_key_values=rows.cache, use_cache=True, **given)
        logits = found.logits[:, -1].float()  # [R, V]
        if len(self._barred):
            logits = logits.index_fill(-1, self._barred, -torch.inf)
        if self._ngrams is not None:
            # What is not read is no token, else padding would bar the token that fills it.
            logits = self._ngrams(read.masked_fill(mask == 0, -1), logits)  # pyright: ignore[reportArgumentType]
        self.drawing.places = rows.places
        return self.drawing.draw(read, logits)

    def _after(self, rows: _Rows, fresh: Tensor) -> tuple[_Rows | None, list[int]]:
        """The rows that go on, if any, and the places of those that have ended."""
        going, ended = [], []
        over = torch.isin(fresh, self._ends)
        for row, (place, tokens, end) in enumerate(zip(rows.places, fresh.tolist(), over.tolist(), strict=True)):
            mine = self.written[place]
            mine += tokens[: end.index(True) + 1] if True in end else tokens
            del mine[self.asked[place].budget :]
            if True in end or len(mine) == self.asked[place].budget:
                ended.append(place)
            else:
                going.append(row)
        return rows.only(going, fresh) if going else None, ended


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them: a step writes its own, and does not copy all that went before."""

    ROOM = 64  # tokens

    def __init__(self) -> None:
        super().__init__()
        self._roomy: tuple[Tensor, Tensor] | None = None  # [R, heads, length and room, size] twice

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.hold(key_states, value_states)
            return self.held
        keys, values = self.held
        start = keys.shape[-2]
        stop = start + key_states.shape[-2]
        if self._roomy is None or stop > self._roomy[0].shape[-2]:
            self._roomy = _with_room(keys, stop), _with_room(values, stop)
        for roomy, fresh in zip(self._roomy, (key_states, value_states), strict=True):
            roomy[:, :, start:stop] = fresh
        self.keys, self.values = (roomy[:, :, :stop] for roomy in self._roomy)
        return self.held

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """Keys and values: [R, heads, length, size] twice."""
        assert self.keys is not None and self.values is not None, "nothing has been read yet"
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Have these in the place of all that there is."""
        self.keys, self.values, self._roomy = keys, values, None


def _with_room(states: Tensor, length: int) -> Tensor:
    rows, heads, held, size = states.shape
    roomy = states.new_empty(rows, heads, length + RoomyLayer.ROOM, size)
    roomy[:, :, :held] = states
    return roomy


@dataclass
class _Rows:
    """Responses under way.

    Attributes:
        places: among all that are asked.
        read: [R, T], on the model's device.
        mask: [R, T], 0 where padding is.
        cache: keys and values of all but the last token.
    """

    places: list[int]
    read: Tensor
    mask: Tensor
    cache: Cache

    def only(self, rows: list[int], fresh: Tensor) -> _Rows:
        """Some of them with the tokens [R, steps] that were written, without padding that none of them needs."""
        chosen = torch.tensor(rows, device=self.read.device)
        mask = torch.cat([self.mask, self.mask.new_ones(fresh.shape)], -1)[chosen]
        empty = int(mask.argmax(-1).min())  # columns of padding that all have on their left
        read = torch.cat([self.read, fresh], -1)[chosen]
        for layer in self._layers():
            layer.hold(*(part[chosen][:, :, empty:] for part in layer.held))
        return _Rows([self.places[row] for row in rows], read[:, empty:], mask[:, empty:], self.cache)

    def beside(self, others: _Rows, filler: int) -> _Rows:
        """These and others in one batch."""
        lengths = self.read.shape[1], others.read.shape[1]
        mine, theirs = (max(lengths) - length for length in lengths)  # columns of padding that either gets
        for ours, other in zip(self._layers(), others._layers(), strict=True):
            ours.hold(
                *(
                    torch.cat([pad(one, (0, 0, mine, 0)), pad(two, (0, 0, theirs, 0))])
                    for one, two in zip(ours.held, other.held, strict=True)
                )
            )
        read = torch.cat([pad(self.read, (mine, 0), value=filler), pad(others.read, (theirs, 0), value=filler)])
        mask = torch.cat([pad(self.mask, (mine, 0)), pad(others.mask, (theirs, 0))])
        return _Rows([*self.places, *others.places], read, mask, self.cache)

    def _layers(self) -> list[RoomyLayer]:
        """Those that hold something: a layer may share another's keys and values."""
        return [layer for layer in self.cache.layers if isinstance(layer, RoomyLayer) and layer.is_initialized]


def padded(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """`prompts` padded on the left, and their mask, by length, since the padding is also a real token: [B, P]."""
    longest = max(map(len, prompts))
    input_ids = torch.full((len(prompts), longest), int(filler))
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return input_ids, mask
