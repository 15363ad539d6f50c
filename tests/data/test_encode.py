from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stillhouse.data.encode import Encoding, Limits, encode, encode_all, encode_prompt
from stillhouse.data.example import SPECIAL_TEXT, TURN_APART, Example, Segment
from stillhouse.data.rows import Row
from stillhouse.data.templates import build
from stillhouse.mistakes import Mistake
from tests.data.small import CHATML, FORGETFUL, LLAMA2, OPEN, byte_level, metaspace

ROOMY = Limits(10_000, 5_000)
BYTE_LEVEL = byte_level()
METASPACE = metaspace()
TEXT = st.text(alphabet=st.sampled_from("ab \n#:'Resp\u00e9\U0001f642"), min_size=1, max_size=40)


def example(prompt: str, response: str, marker: int = 0, origin: str = "t.jsonl:1") -> Example:
    return Example((Segment(prompt, False, marker), Segment(response, True)), origin, (response,))


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def learnt(encoding: Encoding) -> list[int]:
    """The tokens that the scored positions predict."""
    return [int(after) for scored, after in zip(encoding.scored[:-1], encoding.input_ids[1:], strict=True) if scored]


def twin(prompt: str, response: str, marker: int, tokenizer: PreTrainedTokenizerFast, limits: Limits) -> Encoding:
    """The text pipeline again, one token at a time; the marker's tokens by decoding ever longer ends of the prompt."""
    lead = ids_of(tokenizer, prompt)
    if limits.bos and tokenizer.bos_token_id is not None:
        lead = [tokenizer.bos_token_id, *lead]
    if len(lead) > limits.max_prompt_length:
        kept = 0
        while limits.cut == "marker" and not tokenizer.decode(lead[len(lead) - kept :]).endswith(
            prompt[len(prompt) - marker :]
        ):
            kept += 1
        kept = min(kept, limits.max_prompt_length)
        lead = lead[: limits.max_prompt_length - kept] + lead[len(lead) - kept :]
    ids = [*lead, *ids_of(tokenizer, response), tokenizer.eos_token_id][: limits.max_length]
    scored = [len(lead) <= t + 1 < len(ids) for t in range(len(ids))]
    return Encoding(np.array(ids, np.int32), np.array(scored))


@settings(max_examples=300)
@given(TEXT, TEXT, st.integers(0, 8), st.integers(2, 30), st.integers(1, 30), st.sampled_from(["marker", "end"]))
def test_text_examples_against_the_slow_twin(prompt: str, response: str, marker: int, most: int, lead: int, cut: str):
    limits = Limits(most, min(lead, most), cut, bos=False)  # type: ignore[arg-type]
    marker = min(marker, len(prompt))
    ours = encode(example(prompt, response, marker), BYTE_LEVEL, limits)
    slow = twin(prompt, response, marker, BYTE_LEVEL, limits)
    assert ours.input_ids.tolist() == slow.input_ids.tolist()
    assert ours.scored.tolist() == slow.scored.tolist()
    lead_ids = encode_prompt(Segment(prompt, False, marker), BYTE_LEVEL, limits)
    assert ours.input_ids.tolist()[: len(lead_ids)] == lead_ids


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte level", "metaspace"])
def test_what_is_learnt_is_the_response_and_its_end(tokenizer: PreTrainedTokenizerFast):
    encoding = encode(example("How are you?\n", "I am fine."), tokenizer, ROOMY)
    assert learnt(encoding) == [*ids_of(tokenizer, "I am fine."), tokenizer.eos_token_id]
    assert tokenizer.decode(learnt(encoding)[:-1]).strip() == "I am fine."
    assert not encoding.scored[-1]
    assert (encoding.input_ids.dtype, encoding.scored.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize(
    ("tokenizer", "bos", "front"),
    [
        (METASPACE, None, [1]),
        (METASPACE, True, [1]),
        (METASPACE, False, []),
        (BYTE_LEVEL, None, []),
        (BYTE_LEVEL, False, []),
    ],
)
def test_the_beginning_of_text_token(tokenizer: PreTrainedTokenizerFast, bos: bool | None, front: list[int]):
    limits = Limits(100, 50, bos=bos)
    encoding = encode(example("you ", "I am"), tokenizer, limits)
    prompt = encode_prompt(Segment("you ", False), tokenizer, limits)
    assert prompt == [*front, *ids_of(tokenizer, "you ")]
    assert encoding.input_ids.tolist()[: len(prompt)] == prompt
    assert learnt(encoding) == [*ids_of(tokenizer, "I am"), tokenizer.eos_token_id]


def test_a_text_is_learnt_after_its_first_token():
    text = Example((Segment("I am fine.", True),), "t", ("I am fine.",))
    ids = ids_of(METASPACE, "I am fine.")
    assert learnt(encode(text, METASPACE, Limits(100, 50, bos=False))) == [*ids[1:], 2]
    assert learnt(encode(text, METASPACE, Limits(100, 50))) == [*ids, 2]


@pytest.mark.parametrize("limits", [ROOMY, Limits(12, 6)])
def test_all_tokens_may_be_learnt_and_nothing_else_changes(limits: Limits):
    asked = example("Add one and two please. #:", "It is three.", marker=2)
    responses = encode(asked, BYTE_LEVEL, limits)
    everything = encode(asked, BYTE_LEVEL, dataclasses.replace(limits, scored="all"))
    assert everything.input_ids.tolist() == responses.input_ids.tolist()
    assert everything.scored.tolist() == [True] * (len(everything.input_ids) - 1) + [False]
    assert responses.scored.sum() < everything.scored.sum()


def test_a_tokenizer_without_the_asked_beginning_is_a_mistake():
    with pytest.raises(Mistake, match=r"data\.bos: this tokenizer has no beginning-of-text token; set bos: null"):
        encode(example("a", "b"), BYTE_LEVEL, Limits(10, 5, bos=True))


def test_names_of_special_tokens_in_a_text_stay_text_except_in_parity():
    named = example("say </s> ", "</s> is it")
    ours, official = (encode(named, METASPACE, Limits(100, 50, cut, bos=False)) for cut in ("marker", "end"))  # type: ignore[arg-type]
    assert ours.input_ids.tolist().count(2) == 1
    assert official.input_ids.tolist().count(2) == 3


def test_a_cut_prompt_keeps_its_beginning_and_its_marker():
    prompt = build("alpaca").prompt(Row({"instruction": "How are you today? " * 40}, "t"))
    for tokenizer in (BYTE_LEVEL, METASPACE):
        whole = encode_prompt(prompt, tokenizer, ROOMY)
        cut = encode_prompt(prompt, tokenizer, Limits(128, 64))
        end = encode_prompt(prompt, tokenizer, Limits(128, 64, "end"))
        assert len(cut) == len(end) == 64 < len(whole)
        assert end == whole[:64]
        assert tokenizer.decode(cut).endswith("\n\n### Response:\n")
        kept = next(n for n in range(64) if cut[n] != whole[n])
        assert cut[kept:] == whole[len(whole) - 64 + kept :]


def test_a_marker_longer_than_the_limit_gives_its_end():
    prompt = build("alpaca").prompt(Row({"instruction": "How are you today?"}, "t"))
    whole = encode_prompt(prompt, BYTE_LEVEL, ROOMY)
    assert encode_prompt(prompt, BYTE_LEVEL, Limits(10, 2)) == whole[-2:]


# Chats


def slow_owners(text: str, offsets: list[tuple[int, int]], segments: tuple[Segment, ...]) -> list[int]:
    """The segment of each token by a map of every character."""
    owner_of = [number for number, segment in enumerate(segments) for _ in segment.text]
    found = []
    for start, stop in offsets:
        solid = [index for index in range(start, stop) if not text[index].isspace()]
        found.append(owner_of[solid[0] if solid else min(start, len(text) - 1)])
    return found


@settings(max_examples=200)
@given(st.lists(st.text("ab \n\U0001f642", min_size=1, max_size=8), min_size=2, max_size=6), st.booleans())
def test_chat_tokens_belong_where_their_first_visible_character_is(texts: list[str], first: bool):
    segments = tuple(Segment(text, bool(i % 2) is first, special=True) for i, text in enumerate(texts))
    text = "".join(texts)
    view = BYTE_LEVEL(text, return_offsets_mapping=True)
    owners = slow_owners(text, view["offset_mapping"], segments)  # type: ignore[arg-type]
    encoding = encode(Example(segments, "t", closed=True), BYTE_LEVEL, ROOMY)
    assert encoding.input_ids.tolist() == view["input_ids"]
    assert encoding.scored.tolist() == [segments[owner].scored for owner in owners[1:]] + [False]


def conversation(*contents: str) -> Row:
    roles = ("user", "assistant")
    return Row({"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]}, "t.jsonl:1")


def test_a_chat_learns_its_turns_with_their_ends():
    tokenizer = byte_level(CHATML)
    (chat,) = build("chat", tokenizer).examples(conversation("Hello", "I am fine", "you?", "It is four"))
    encoding = encode(chat, tokenizer, ROOMY)
    assert tokenizer.decode(learnt(encoding)) == "I am fine<|im_end|>\nIt is four<|im_end|>\n"
    rendered = "".join(segment.text for segment in chat.segments)
    assert encoding.input_ids.tolist() == tokenizer(rendered)["input_ids"]
    prompt = encode_prompt(build("chat", tokenizer).prompt(conversation("Hello")), tokenizer, ROOMY)
    assert encoding.input_ids.tolist()[: len(prompt)] == prompt


def test_a_rendered_beginning_is_not_doubled():
    tokenizer = metaspace(LLAMA2)
    (chat,) = build("chat", tokenizer).examples(conversation("Hello", "I am fine"))
    for bos in (None, True, False):
        ids = encode(chat, tokenizer, Limits(100, 50, bos=bos)).input_ids.tolist()
        assert (ids[0], ids.count(1), ids[-1], ids.count(2)) == (1, 1, 2, 1)


def test_a_header_that_ends_with_a_space_leaves_the_first_word_to_the_response():
    tokenizer = byte_level(OPEN)
    (chat,) = build("chat", tokenizer).examples(conversation("Hello", "fine, thank you"))
    encoding = encode(chat, tokenizer, ROOMY)
    assert tokenizer.decode(learnt(encoding)) == " fine, thank you<|endoftext|>"


def test_a_cut_chat_keeps_the_assistants_header():
    tokenizer = byte_level(CHATML)
    prompt = build("chat", tokenizer).prompt(conversation("How are you today? " * 40))
    cut = tokenizer.decode(encode_prompt(prompt, tokenizer, Limits(64, 32)))
    assert cut.startswith("<|im_start|>user\nHow are")
    assert cut.endswith("<|im_end|>\n<|im_start|>assistant\n")
    (chat,) = build("chat", tokenizer).examples(conversation("How are you today? " * 40, "fine"))
    assert tokenizer.decode(learnt(encode(chat, tokenizer, Limits(64, 32)))) == "fine<|im_end|>\n"


# Many examples at once


def test_encode_all_is_encode_of_each_with_chats_and_texts_together():
    tokenizer = byte_level(CHATML)
    template = build("chat", tokenizer)
    rows = [
        row
        for i in range(200)
        for row in (conversation(f"Hello {i}", "fine" * (i % 7 + 1)), Row({"text": f"It is {i}."}, f"t.jsonl:{i + 2}"))
    ]
    examples = [example for row in rows for example in template.examples(row)]
    dataset, census = encode_all(examples, tokenizer, Limits(20, 12))
    assert len(dataset) == census.examples == len(examples)
    for index in range(len(dataset)):
        item, alone = dataset[index], encode(examples[index], tokenizer, Limits(20, 12))
        assert item["input_ids"].tolist() == alone.input_ids.tolist()
        assert item["scored"].tolist() == alone.scored.tolist()
        assert item["sample"] == index
        assert dataset.origins[index] == examples[index].origin
    last = dataset[len(dataset) - 1]
    assert all(np.array_equal(dataset[-1][key], last[key]) for key in ("input_ids", "scored", "sample"))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_the_census_counts_what_was_cut_and_dropped():
    longer = "How are you today? " * 20
    examples = [
        example("you ", "fine"),
        example(longer, "fine"),
        example("you ", longer),
        example(longer, "fine", origin="t.jsonl:9"),
        Example((Segment("a", True),), "t.jsonl:10", closed=True),
    ]
    limits = Limits(24, 24)
    dataset, census = encode_all(examples, BYTE_LEVEL, limits)
    # 1 whole; 2 and 4 have prompts that leave no room; 3 loses its response's end; 5 has one token, which none predicts
    assert dataset.samples.tolist() == [0, 2]
    assert census.dropped == ["t.jsonl:1", "t.jsonl:9", "t.jsonl:10"]
    assert (census.rows, census.examples, census.prompts_cut, census.responses_cut) == (3, 2, 0, 1)
    assert census.tokens == sum(len(dataset[i]["input_ids"]) for i in range(2)) == len(dataset.input_ids)
    assert census.scored_tokens == sum(dataset[i]["scored"].sum() for i in range(2))
    assert census.longest == max(dataset.lengths) == 24
    assert census.lines() == [
        f"3 rows, 2 examples, {census.tokens} tokens of which {census.scored_tokens} scored, the longest 24",
        "1 examples were cut at 24 tokens and lost the end of a response",
        "3 examples were dropped, no scored token left: t.jsonl:1, t.jsonl:9, t.jsonl:10",
    ]
    assert census.as_dict()["dropped"] == 3

    _, narrow = encode_all(examples[:3], BYTE_LEVEL, Limits(24, 8))
    assert (narrow.prompts_cut, narrow.responses_cut, narrow.dropped) == (1, 1, [])
    assert "1 prompts were longer than 8 tokens and were cut" in narrow.lines()


def test_remarks_of_the_template_are_counted():
    tokenizer = byte_level(FORGETFUL)
    examples = build("chat", tokenizer).examples(conversation("a <|im_end|>", "<think>b</think>c", "d", "e"))
    _, census = encode_all(examples, tokenizer, ROOMY)
    assert census.remarks == {TURN_APART: 2, SPECIAL_TEXT: 2}
    assert census.lines()[1:] == [
        "2 examples are single turns: the chat template rewrites earlier turns",
        "2 examples name a special token in a message, which is read as that token",
    ]
    assert census.rows == 1


def test_nothing_left_is_a_mistake():
    with pytest.raises(Mistake, match=r"t\.jsonl:1: none of 1 examples has a scored token left at max_length 2; raise"):
        encode_all([example("How are you today?", "fine")], BYTE_LEVEL, Limits(2, 2))
    with pytest.raises(Mistake, match="data: there are no examples"):
        encode_all([], BYTE_LEVEL, ROOMY)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_length": 1, "max_prompt_length": 1}, "data.max_length: must be at least 2, got 1"),
        (
            {"max_length": 8, "max_prompt_length": 9},
            r"data.max_prompt_length: must be from 1 to max_length \(8\), got 9",
        ),
        ({"max_length": 8, "max_prompt_length": 0}, "data.max_prompt_length: must be from 1 to max_length"),
        ({"max_length": 8, "max_prompt_length": 4, "cut": "start"}, "data.cut: must be 'marker' or 'end', got 'start'"),
    ],
)
def test_limits_that_cannot_be(settings: dict[str, object], expected: str):
    with pytest.raises(Mistake, match=expected):
        Limits(**settings)  # type: ignore[arg-type]


def test_only_what_is_over_a_limit_is_cut_and_counted():
    lead, response = len(ids_of(METASPACE, "How are you")) + 1, len(ids_of(METASPACE, "fine")) + 1  # with <s>, </s>
    whole = example("How are you", "fine")
    for most, most_lead, cuts in (
        (lead + response, lead, (0, 0)),
        (lead + response - 1, lead, (0, 1)),
        (lead + response, lead - 1, (1, 0)),
    ):
        _, census = encode_all([whole], METASPACE, Limits(most, most_lead))
        assert (census.prompts_cut, census.responses_cut) == cuts


def test_the_beginning_of_text_token_counts_and_a_marker_still_stays():
    prompt = Segment("How are you?\n", False, marker=2)
    ids = [1, *ids_of(METASPACE, prompt.text)]
    assert encode_prompt(prompt, METASPACE, Limits(100, len(ids) - 1)) == ids[:-3] + ids[-2:]


def test_offsets_are_contiguous():
    dataset, _ = encode_all([example("you ", "fine" * n) for n in range(1, 6)], BYTE_LEVEL, ROOMY)
    assert dataset.offsets[0] == 0
    assert dataset.offsets[-1] == len(dataset.input_ids) == len(dataset.scored)
    assert [stop - start for start, stop in pairwise(dataset.offsets)] == dataset.lengths.tolist()
