"""The student's response in place of the data set's: which turn, which tokens end it, and what is no text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stillhouse.alignment import span
from stillhouse.data.encode import EncodedDataset, Limits, encode_all
from stillhouse.data.example import Example, Segment
from stillhouse.data.rows import Row
from stillhouse.data.templates import build
from stillhouse.rollout.replay import Rollout
from stillhouse.training.rewriting import OwnText, OwnTokens, encoder, rewritten
from tests.rollout.small import chat_tokenizer

TOKENIZER = chat_tokenizer()
CHAT = Row(
    {"messages": [
        {"role": "system", "content": "SYSTEM"},
        {"role": "user", "content": "question one"},
        {"role": "assistant", "content": "first answer that is long"},
        {"role": "user", "content": "second q"},
        {"role": "assistant", "content": "second"},
    ]},
    "rows.jsonl:1",
)  # fmt: skip
IM_END = int(TOKENIZER.convert_tokens_to_ids("<|im_end|>"))  # pyright: ignore[reportArgumentType]


def encoded(limits: Limits) -> tuple[list[Example], EncodedDataset]:
    examples = build("chat", TOKENIZER).examples(CHAT)
    return examples, encode_all(examples, TOKENIZER, limits, spans="bytes")[0]


def own_text(limits: Limits) -> tuple[OwnText, EncodedDataset]:
    examples, train = encoded(limits)
    side = encoder(TOKENIZER, limits, "bytes")
    return OwnText(train, TOKENIZER, (examples, examples), (side, side), span, solid=False), train


def said(text: str, *, finished: bool, prompt: list[int] | None = None) -> Rollout:
    ids = [*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([IM_END] if finished else [])]
    return Rollout(0, tuple(prompt or [1]), tuple(ids), finished, *([(0.0,) * len(ids)] * 3))


def learnt(item: dict[str, Any]) -> list[int]:
    return item["input_ids"][1:][item["scored"][:-1]].tolist()


@pytest.mark.parametrize("longest", [400, 90])
def test_the_student_learns_behind_the_prompt_that_it_answered(longest: int):
    """The second turn, or, where that is cut away, the first; a long history is cut as it was for the prompt."""
    items, train = own_text(Limits(longest, 60))
    prompt = items.prompt(0)
    item = items.item(said("NEW", finished=True))
    assert item is not None
    ids = item["input_ids"].tolist()
    assert ids[: len(prompt)] == prompt
    assert TOKENIZER.decode(learnt(item)).startswith("NEW") and not item["scored"][: len(prompt) - 1].any()
    history = TOKENIZER.decode(prompt)
    assert history.startswith("<|im_start|>system\nSYSTEM") and ("second q" in history) == (longest == 400)
    assert OwnTokens(train).prompt(0) == prompt


@pytest.mark.parametrize("finished", [True, False])
def test_of_a_response_that_was_broken_off_nothing_is_learnt_that_ends_it(finished: bool):
    items, _ = own_text(Limits(400, 60))
    item = items.item(said("NEW one", finished=finished))
    assert item is not None
    for side in (item, item["teacher"]):
        assert (IM_END in learnt(side)) == finished
        assert TOKENIZER.decode(learnt(side), skip_special_tokens=True).strip() == "NEW one"
    rows = int(item["scored"].sum())
    # Both sides are the same here; the template's newline behind the end of a turn has no width, and joins it.
    assert len(item["alignment"]) == rows - finished


def test_bytes_that_are_no_character_are_no_text():
    items, _ = own_text(Limits(400, 60))
    items._text = lambda rollout: "a\ufffdb"  # pyright: ignore[reportAttributeAccessIssue]
    assert items.item(said("ab", finished=True)) is None


def test_a_character_that_was_broken_off_is_left_out():
    class Broken:
        def decode(self, *_: Any, **__: Any) -> str:
            return "ab\ufffd\ufffd"

    items, _ = own_text(Limits(400, 60))
    items.tokenizer = Broken()  # pyright: ignore[reportAttributeAccessIssue]
    assert items._text(said("ab", finished=False)) == "ab"
    assert items.item(said("ab", finished=True)) is None


def test_a_template_that_rewrites_what_is_said_has_no_place_for_other_words():
    example = Example((Segment("q", scored=False), Segment("<t>REWRITTEN</t>", scored=True, words="  abc ")), "a:1")
    assert rewritten(example, "STUDENT", 1) is None


def test_beside_the_students_response_the_last_one_of_the_data_is_learnt():
    _, train = encoded(Limits(400, 200))
    item = OwnTokens(train).beside(0)
    assert TOKENIZER.decode(learnt(item), skip_special_tokens=True).strip() == "second"
    assert TOKENIZER.decode(learnt(OwnTokens(train).given(0)), skip_special_tokens=True).startswith("first")
    assert np.array_equal(item["input_ids"], OwnTokens(train).given(0)["input_ids"])
