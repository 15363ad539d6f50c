"""Prompts as in training, and the tokens that end a turn."""

from __future__ import annotations

import pytest

from stillhouse.data import Row
from stillhouse.data.encode import Limits, encode
from stillhouse.data.templates import build
from stillhouse.rollout import encode_prompts, end_of_turn
from tests.rollout.small import CHATML, character_tokenizer, chat_tokenizer

ROWS = [Row({"instruction": text, "output": "x"}, "rows.jsonl") for text in ("abc", "a" * 50, "ab")]


def test_a_prompt_is_what_training_puts_before_the_response():
    tokenizer, template = character_tokenizer(), build("short")
    limits = Limits(100, 40)
    prompts = encode_prompts(ROWS, template, tokenizer, limits)
    for row, ids in zip(ROWS, prompts.input_ids, strict=True):
        encoding = encode(template.examples(row)[0], tokenizer, limits)
        assert ids == encoding.input_ids[: encoding.scored.argmax() + 1].tolist()
    assert prompts.cut == 1
    assert prompts.texts == [template.prompt(row).text for row in ROWS]


def test_a_chat_ends_its_turns_with_its_own_token():
    tokenizer = chat_tokenizer()
    assert end_of_turn(build("chat", tokenizer), tokenizer) == tokenizer.convert_tokens_to_ids(["<|im_end|>"])


def test_what_is_written_before_the_closing_token_is_passed_over():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_end|>", " .<|im_end|>")
    assert end_of_turn(build("chat", tokenizer), tokenizer) == tokenizer.convert_tokens_to_ids(["<|im_end|>"])


@pytest.mark.parametrize(("bos", "cut"), [(True, 1), (None, 0), (False, 0)])
def test_a_prompt_that_only_the_beginning_of_text_token_makes_too_long_is_cut(bos, cut):
    tokenizer, template = character_tokenizer(bos_token="\t"), build("short")
    limits = Limits(100, len(template.prompt(ROWS[0]).text), bos=bos)
    assert encode_prompts(ROWS[:1], template, tokenizer, limits).cut == cut


def test_text_templates_end_with_the_text():
    assert end_of_turn(build("alpaca"), character_tokenizer()) == []


def test_a_chat_without_a_closing_token_has_none():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert end_of_turn(build("chat", tokenizer), tokenizer) == []
