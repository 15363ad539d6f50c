from __future__ import annotations

from typing import Any

import pytest

from stillhouse.data.conversation import read, rejected
from stillhouse.data.rows import Row
from stillhouse.mistakes import LONGEST_LINE, Mistake

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def said(fields: dict[str, Any]) -> str:
    with pytest.raises(Mistake) as caught:
        read(Row(fields, "t.jsonl:7"))
    line = str(caught.value)
    assert line.startswith("t.jsonl:7")
    assert len(line) <= LONGEST_LINE
    return line


@pytest.mark.parametrize(
    ("fields", "asked", "references"),
    [
        ({"instruction": "i", "output": "o"}, "i", ("o",)),
        ({"instruction": "i", "input": "", "output": "o", "category": 3}, "i", ("o",)),
        ({"instruction": "i", "input": "c", "output": "o", "text": "rendered"}, "i\nc", ("o",)),
        ({"instruction": "i", "input": None, "output": ["o", "p"]}, "i", ("o", "p")),
        ({"prompt": "p", "completion": "o"}, "p", ("o",)),
        ({"prompt": "rendered", "instruction": "i", "input": "c", "output": "o"}, "i\nc", ("o",)),
        ({"prompt": "p", "output": ""}, "p", ()),
        ({"prompt": "p", "output": []}, "p", ()),
        ({"prompt": "p"}, "p", ()),
        ({"messages": [USER, ASSISTANT]}, "q", ("a",)),
        ({"messages": [USER]}, "q", ()),
    ],
)
def test_every_format_is_one_conversation(fields: dict[str, Any], asked: str, references: tuple[str, ...]):
    conversation = read(Row(fields, "t"))
    assert [message["content"] for message in conversation.history] == [asked]
    assert conversation.references == references
    assert [m["content"] for m in conversation.messages[1:]] == list(references[:1])


@pytest.mark.parametrize("wrapped", ["texts", "after a text", "after messages", "whole"])
def test_a_pair_has_what_is_chosen_and_what_is_rejected(wrapped: str):
    sides = {"chosen": "yes", "rejected": "no"}
    said = {key: [{"role": "assistant", "content": text}] for key, text in sides.items()}
    asked = {"role": "user", "content": "p"}
    fields = {
        "texts": {"prompt": "p", **sides},
        "after a text": {"prompt": "p", **said},
        "after messages": {"prompt": [asked], **said},
        "whole": {"prompt": "a note", **{key: [asked, *messages] for key, messages in said.items()}},
    }[wrapped]
    # Data sets repeat what is chosen, and more.
    beside = {"messages": [asked, *said["chosen"]], "output": "yes", "completion": ["yes"], "text": "p yes"}
    for row in (Row(fields, "t"), Row({**fields, **beside}, "t")):
        for read_one, text in ((read(row), "yes"), (read(rejected(row)), "no")):
            assert read_one.references == (text,)
            assert [message["content"] for message in read_one.messages] == ["p", text]
    others = Row({**fields, "rejected": [{"role": "user", "content": "q"}, *said["rejected"]]}, "t")
    with pytest.raises(Mistake, match="t: 'chosen' and 'rejected' answer different prompts"):
        rejected(others)
    with pytest.raises(Mistake, match="t: has no 'rejected'; a pair is"):
        rejected(Row({**fields, "rejected": None}, "t"))


def test_text_has_no_messages():
    assert read(Row({"text": "t", "id": 1}, "t")).text == "t"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"question": "q", "answer": "a"}, "no accepted keys (has: question, answer); a row is {messages}, {prompt,"),
        ({}, "no accepted keys (has: none)"),
        ({"completion": "c"}, "no accepted keys (has: completion)"),
        ({"mesages": [USER]}, "unknown key 'mesages'; did you mean 'messages'?"),
        ({"instruction": "i", "imput": "c", "output": "o"}, "unknown key 'imput'; did you mean 'input'?"),
        ({"instruction": "i", "ouput": "o"}, "unknown key 'ouput'; did you mean 'output'?"),
        ({"promt": "i", "completion": "o"}, "unknown key 'promt'; did you mean 'prompt'?"),
        ({"prompt": "i", "completions": "o"}, "unknown key 'completions'; did you mean 'completion'?"),
        ({"instruction": " ", "output": "o"}, "'instruction' is empty"),
        ({"prompt": "", "output": "o"}, "'prompt' is empty"),
        ({"prompt": ["p"], "output": "o"}, "'prompt' is not a text but ['p']"),
        ({"prompt": "p", "output": 7}, "'output' is not a text but 7"),
        ({"prompt": "p", "output": ["o", ""]}, "'output[1]' is empty"),
        ({"prompt": "p", "output": ["o", 1]}, "'output[1]' is not a text but 1"),
        ({"prompt": "p", "output": "half \ud83d"}, "'output' holds a broken character at 5"),
        ({"text": ""}, "'text' is empty"),
        ({"messages": []}, "'messages' is not a list of messages"),
        ({"chosen": [ASSISTANT]}, "chosen[0]: 'assistant' comes first"),
        ({"prompt": "p", "chosen": [3]}, "chosen[1] is not an object"),
        ({"prompt": "p", "chosen": 3}, "'chosen' is not a text but 3"),
        ({"prompt": "p", "choosen": "c"}, "unknown key 'choosen'; did you mean 'chosen'?"),
        ({"messages": "hi"}, "'messages' is not a list of messages"),
        ({"messages": ["hi"]}, "messages[0] is not an object"),
        ({"messages": [{"role": "user"}]}, "messages[0]: has no 'content'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]: 'content' is not a text but 3"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "unknown role 'asistant'; did you mean 'assistant'?"),
        (
            {"messages": [{"role": "human", "content": "a"}]},
            "unknown role 'human'; known: assistant, system, tool, user",
        ),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages[1]: 'content' is empty"),
        (
            {"messages": [ASSISTANT]},
            "messages[0]: 'assistant' comes first; it may only come after 'user' or after 'tool'",
        ),
        ({"messages": [USER, USER]}, "messages[1]: 'user' comes after 'user'"),
        ({"messages": [USER, ASSISTANT, ASSISTANT]}, "messages[2]: 'assistant' comes after 'assistant'"),
        (
            {"messages": [USER, {"role": "system", "content": "s"}]},
            "'system' comes after 'user'; it may only come first",
        ),
        ({"messages": [{"role": "system", "content": "s"}]}, "no message is from the user"),
    ],
)
def test_mistakes_name_the_row(fields: dict[str, Any], expected: str):
    assert expected in said(fields)
