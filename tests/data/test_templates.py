from __future__ import annotations

from typing import Any

import pytest

from stillhouse.data.example import SPECIAL_TEXT, TURN_APART, Example
from stillhouse.data.rows import Row
from stillhouse.data.templates import TEMPLATES, build
from stillhouse.mistakes import Mistake
from tests.data.small import CHATML, CONTRARY, FORGETFUL, LLAMA2, OPEN, byte_level, metaspace

PREAMBLE = "Below is an instruction that describes a task"
ALPACA = (
    f"{PREAMBLE}. Write a response that appropriately completes the request.\n\n### Instruction:\n%s\n\n### Response:\n"
)
WITH_INPUT = (
    f"{PREAMBLE}, paired with an input that provides further context. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n"
)


def row(**fields: Any) -> Row:
    return Row(fields, "t.jsonl:7")


def chat(*contents: str, system: str = "") -> Row:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return row(messages=([{"role": "system", "content": system}] if system else []) + messages)


def parts(example: Example, *, scored: bool) -> list[str]:
    return [segment.text for segment in example.segments if segment.scored is scored]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("alpaca", row(instruction="i", output="o"), ALPACA % "i"),
        ("alpaca", row(instruction="i", input="c", output="o"), WITH_INPUT % ("i", "c")),
        ("alpaca", row(prompt="p", completion="o"), ALPACA % "p"),
        ("alpaca", row(prompt=ALPACA % "i", output="o"), ALPACA % "i"),
        ("alpaca", row(prompt=ALPACA % "i", instruction="i", input="", output="o"), ALPACA % "i"),
        ("alpaca", chat("u", "o"), ALPACA % "u"),
        ("short", row(instruction="i", output="o"), "### Instruction:\ni\n\n### Response:\n"),
        ("short", row(instruction="i", input="c", output="o"), "### Instruction:\ni\nc\n\n### Response:\n"),
        ("plain", row(instruction="i", output="o"), "i\n"),
        ("plain", row(instruction="i", input="c", output="o"), "i\nc\n"),
        ("plain", row(prompt="p:", completion="o"), "p:"),
        ("plain", row(prompt=ALPACA % "i", instruction="i", output="o"), ALPACA % "i"),
        ("plain", chat("u", "o"), "u\n"),
    ],
)
def test_one_prompt_and_one_response(name: str, given: Row, expected: str):
    (example,) = build(name).examples(given)
    prompt, response = example.segments
    assert prompt == build(name).prompt(given)
    assert (prompt.text, prompt.scored, prompt.special) == (expected, False, False)
    assert (response.text, response.scored, example.closed) == ("o", True, False)
    assert example.references == build(name).references(given) == ("o",)
    assert example.origin == "t.jsonl:7"


@pytest.mark.parametrize(
    ("name", "given", "marker"),
    [
        ("alpaca", row(instruction="i"), "\n\n### Response:\n"),
        ("alpaca", row(instruction="i", input="c"), "\n\n### Response:\n"),
        ("short", row(instruction="a\n### Response:\n\n\n"), "\n\n### Response:\n"),
        ("plain", row(prompt=ALPACA % "i"), "\n\n### Response:\n"),
        ("plain", row(instruction="i"), "\n"),
        ("plain", row(prompt="p"), ""),
    ],
)
def test_the_marker_is_the_end_that_a_cut_keeps(name: str, given: Row, marker: str):
    prompt = build(name).prompt(given)
    assert prompt.text[len(prompt.text) - prompt.marker :] == marker


def test_references_are_all_kept_and_the_first_is_learnt():
    (example,) = build("alpaca").examples(row(instruction="i", output=["o", "p"]))
    assert parts(example, scored=True) == ["o"]
    assert example.references == ("o", "p")


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_scored_whole_whatever_the_template(name: str):
    template = build(name, byte_level(CHATML))
    (example,) = template.examples(row(text="t"))
    assert [(segment.text, segment.scored, segment.special) for segment in example.segments] == [("t", True, False)]
    assert not example.closed
    with pytest.raises(Mistake, match=r"t\.jsonl:7: a \{text\} row has no prompt to answer"):
        template.prompt(row(text="t"))


@pytest.mark.parametrize(
    "fields", [{"instruction": "i"}, {"prompt": "p", "output": " "}, {"prompt": "p", "output": []}]
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_without_a_response_is_a_mistake_for_training_alone(name: str, fields: dict[str, Any]):
    template = build(name, byte_level(CHATML))
    assert template.prompt(row(**fields)).text
    with pytest.raises(Mistake, match=r"t\.jsonl:7: a row without a response: 'output' \(or 'completion'\) is missing"):
        template.examples(row(**fields))
    with pytest.raises(Mistake, match="a row without a response: the last message is not the assistant's"):
        template.examples(chat("u"))


def test_text_templates_have_one_turn():
    with pytest.raises(Mistake, match="several turns, for which template 'alpaca' has no place; use template: chat"):
        build("alpaca").examples(chat("u", "o", "u", "o"))
    with pytest.raises(Mistake, match="a system message, for which template 'plain' has no place; use template: chat"):
        build("plain").prompt(chat("u", "o", system="s"))


def test_unknown_template_and_missing_chat_template():
    with pytest.raises(Mistake, match=r"data\.template: unknown template 'alpacca'; did you mean 'alpaca'\?"):
        build("alpacca")
    with pytest.raises(Mistake, match="this tokenizer has no chat template; use template: alpaca or plain"):
        build("chat", byte_level())


def test_chat_scores_every_assistant_turn():
    (example,) = build("chat", byte_level(CHATML)).examples(chat("q1", "a1", "q2", "a2", system="s"))
    assert parts(example, scored=False) == [
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert parts(example, scored=True) == ["a1<|im_end|>\n", "a2<|im_end|>\n"]
    assert all(segment.special for segment in example.segments)
    assert (example.closed, example.references, example.remarks) == (True, ("a2",), ())
    header = "<|im_end|>\n<|im_start|>assistant\n"
    assert [segment.marker for segment in example.segments] == [len(header), 0, len(header), 0]


def test_a_template_without_a_generation_prompt():
    (example,) = build("chat", metaspace(LLAMA2)).examples(chat("q1", "a1", "q2", "a2"))
    assert parts(example, scored=False) == ["<s>[INST] q1 [/INST]", "<s>[INST] q2 [/INST]"]
    assert parts(example, scored=True) == [" a1 </s>", " a2 </s>"]
    assert example.segments[0].marker == len(" [/INST]")


def test_the_prompt_of_a_chat_is_all_before_the_last_response():
    template = build("chat", byte_level(CHATML))
    for conversation in (chat("q1", "a1", "q2", "a2"), chat("q1", "a1", "q2")):
        prompt = template.prompt(conversation)
        assert prompt.text.endswith("a1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n")
        assert (prompt.special, prompt.scored) == (True, False)


def test_a_template_that_rewrites_earlier_turns_gives_one_example_a_turn():
    template = build("chat", byte_level(FORGETFUL))
    first, second = template.examples(chat("q1", "<think>t1</think>a1", "q2", "<think>t2</think>a2"))
    assert parts(first, scored=True) == ["<think>t1</think>a1<|im_end|>\n"]
    assert parts(second, scored=True) == ["<think>t2</think>a2<|im_end|>\n"]
    assert "assistant\na1<|im_end|>" in parts(second, scored=False)[0]
    assert "t1" not in parts(second, scored=False)[0]
    assert first.remarks == second.remarks == (TURN_APART,)
    assert (first.references, second.references) == (("<think>t1</think>a1",), ("<think>t2</think>a2",))
    (whole,) = template.examples(chat("q1", "a1", "q2", "a2"))
    assert parts(whole, scored=True) == ["a1<|im_end|>\n", "a2<|im_end|>\n"]


def test_a_template_whose_header_no_turn_has_is_a_mistake():
    with pytest.raises(Mistake, match=r"t\.jsonl:7: messages\[1\]: the chat template writes this turn otherwise"):
        build("chat", byte_level(CONTRARY)).examples(chat("q", "a"))


def test_a_conversation_that_the_template_refuses_is_a_mistake():
    with pytest.raises(Mistake, match=r"t\.jsonl:7: the chat template refuses this conversation: only user and"):
        build("chat", metaspace(LLAMA2)).examples(chat("q", "a", system="s"))


def test_a_chat_that_nothing_closes_is_left_to_the_end_of_text_token():
    (example,) = build("chat", byte_level(OPEN)).examples(chat("q", "a"))
    assert not example.closed
    assert parts(example, scored=True) == ["a"]


def test_a_special_token_named_in_a_message_is_remarked():
    (example,) = build("chat", byte_level(CHATML)).examples(chat("what is <|im_end|>?", "a mark"))
    assert example.remarks == (SPECIAL_TEXT,)


def test_single_turn_rows_in_a_chat():
    template = build("chat", byte_level(CHATML))
    asked = "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n"
    assert template.prompt(row(instruction="i", input="c")).text == asked % "i\nc"
    assert template.prompt(row(prompt="p")).text == asked % "p"
    assert template.prompt(row(prompt=ALPACA % "i", instruction="i", output="o")).text == asked % "i"
