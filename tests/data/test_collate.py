from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stillhouse.data.collate import Collator, PackingCollator
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.example import Example, Segment
from stillhouse.data.tokenizer import pad_id
from tests.data.small import byte_level


def item(ids: list[int], scored: list[int], sample: int) -> dict[str, Any]:
    return {"input_ids": np.array(ids), "scored": np.array(scored, bool), "sample": sample}


ITEMS = [item([5, 6, 7, 8], [0, 1, 1, 0], 3), item([5, 9], [1, 0], 0)]


def test_a_batch_is_padded_on_the_right_to_its_longest():
    batch = Collator(pad_id=1)(ITEMS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["scored"].tolist() == [[False, True, True], [True, False, False]]
    assert batch["labels"].tolist() == [[-100, 7, 8], [9, -100, -100]]
    assert batch["scored_at"].tolist() == [1, 2, 3]
    assert batch["sample"].tolist() == [3, 0]
    assert {key: tensor.dtype for key, tensor in batch.items()} == {
        "input_ids": torch.long, "attention_mask": torch.long, "scored": torch.bool, "labels": torch.long,
        "scored_at": torch.long, "sample": torch.long,
    }  # fmt: skip


def test_a_fixed_length_adds_padding_and_nothing_else():
    batch, padded = Collator(pad_id=1)(ITEMS), Collator(pad_id=1, pad_to=5)(ITEMS)
    for key, padding in {"input_ids": 1, "attention_mask": 0, "scored": 0, "labels": -100}.items():
        assert torch.equal(padded[key][:, :3], batch[key])
        assert padded[key][:, 3:].tolist() == [[padding] * 2] * 2
    assert padded["scored_at"].tolist() == [1, 2, 5]
    with pytest.raises(ValueError, match="an item has 3 positions, but pad_to is 2"):
        Collator(pad_id=1, pad_to=2)(ITEMS)


def test_a_packed_batch_is_one_row_of_examples_that_each_begin_at_position_0():
    batch = PackingCollator()(ITEMS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 5]]
    assert batch["labels"].tolist() == [[-100, 7, 8, 9]]
    assert batch["scored"].tolist() == [[False, True, True, True]]
    assert batch["scored_at"].tolist() == [1, 2, 3]
    assert batch["sample"].tolist() == [3, 0]
    assert "attention_mask" not in batch
    packed = batch["packed"]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0]]
    assert packed["boundaries"].tolist() == [0, 3, 4] and packed["boundaries"].dtype == torch.int32
    assert packed["longest"] == 3
    assert packed["sequence"].tolist() == [0, 0, 1]
    assert {batch[key].dtype for key in ("input_ids", "labels", "scored_at", "sample")} == {torch.long}
    assert {packed[key].dtype for key in ("position_ids", "sequence")} == {torch.long}


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=9).filter(lambda some: any(some[:-1])), min_size=1))
def test_packed_and_padded_batches_score_the_same_tokens_in_the_same_order(scored: list[list[bool]]):
    items = [item(list(range(2, 2 + len(some))), [*some[:-1], False], i) for i, some in enumerate(scored)]
    padded, packed = Collator(pad_id=1)(items), PackingCollator()(items)
    for batch in (padded, packed):
        batch["predicted"] = batch["labels"].flatten()[batch["scored_at"]]
        batch["from"] = batch["input_ids"].flatten()[batch["scored_at"]]
    assert torch.equal(packed["predicted"], padded["predicted"]) and torch.equal(packed["from"], padded["from"])
    assert torch.equal(packed["packed"]["sequence"], padded["scored_at"] // padded["labels"].shape[1])
    assert torch.equal(packed["predicted"], packed["from"] + 1)  # never the first token of the next example
    assert packed["input_ids"].numel() == int(padded["attention_mask"].sum())


def test_a_loader_with_workers_gives_every_item_once():
    examples = [Example((Segment("you ", False), Segment("fine" * n, True)), f"t:{n}") for n in range(1, 8)]
    tokenizer = byte_level()
    dataset, census = encode_all(examples, tokenizer, Limits(64, 32))
    loader = DataLoader(dataset, batch_size=3, collate_fn=Collator(pad_id(tokenizer)), num_workers=1)
    batches = list(loader)
    assert torch.cat([batch["sample"] for batch in batches]).tolist() == list(range(7))
    assert sum(int(batch["scored"].sum()) for batch in batches) == census.scored_tokens
