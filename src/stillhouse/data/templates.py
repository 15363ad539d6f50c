"""How a conversation is written as text: a prompt that is given, and responses that are learnt.

`alpaca`, `short` and `plain` write one turn, prompt and response apart, and end with the end-of-text token. `chat` is
the tokenizer's own template; every assistant turn of a conversation is scored. What such a turn adds is found without
touching the template, by prefix difference (i is an assistant's turn):

    given   = render(messages[:i], add_generation_prompt)
    response = render(messages[:i + 1]) minus given          end-of-turn marks included

A template that rewrites earlier turns (dropping their reasoning, say) has no rendering in which every turn looks as it
does when it is written; such a conversation becomes one example a turn.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from stillhouse.data.conversation import Conversation, Message, question, read
from stillhouse.data.example import SPECIAL_TEXT, TURN_APART, Example, Segment
from stillhouse.data.rows import Row
from stillhouse.mistakes import Mistake, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESPONSE_MARK = "### Response:"


class Template(ABC):
    """Turns rows into examples and prompts."""

    name: str

    def examples(self, row: Row) -> list[Example]:
        """What there is to learn in `row`: one example, or one a turn.

        Raises:
            Mistake: the row has no response, or this template has no place for something in it.
        """
        conversation = read(row)
        if conversation.text:
            segments = (Segment(conversation.text, scored=True),)
            return [Example(segments, row.origin, references=(conversation.text,))]
        conversation.require_response()
        return self._examples(conversation)

    def prompt(self, row: Row) -> Segment:
        """The prompt that the row's (last) response answers; the row needs no response.

        Raises:
            Mistake: it is a {text}, or this template has no place for something in it.
        """
        conversation = read(row)
        if conversation.text:
            raise Mistake(row.origin, "a {text} row has no prompt to answer", "give {prompt} or {messages}")
        return self._prompt(conversation)

    def references(self, row: Row) -> tuple[str, ...]:
        """The acceptable responses of `row`; empty where it has none."""
        return read(row).references

    @abstractmethod
    def continued(self, said: Sequence[str], origin: str) -> Segment:
        """The prompt of another answer in a chat: `said` are question, answer, question ..., the last to be answered.

        An answer may be empty, as a weak model's often is.

        Raises:
            Mistake: at `origin`, a chat template refuses these turns.
        """

    @abstractmethod
    def _examples(self, conversation: Conversation) -> list[Example]: ...

    @abstractmethod
    def _prompt(self, conversation: Conversation) -> Segment: ...


class TextTemplate(Template):
    """One turn, its parts tokenised apart; `_written` is the template."""

    def continued(self, said: Sequence[str], origin: str) -> Segment:
        text = self._written(said[0], "")
        for answer, asked in zip(said[1::2], said[2::2], strict=True):
            text += f"{answer}\n\n{self._further(asked)}"
        return Segment(text, scored=False, marker=_marker(text))

    def _further(self, instruction: str) -> str:
        """A question after the first."""
        return self._written(instruction, "")

    def _examples(self, conversation: Conversation) -> list[Example]:
        segments = (self._prompt(conversation), Segment(conversation.references[0], scored=True))
        return [Example(segments, conversation.origin, conversation.references)]

    def _prompt(self, conversation: Conversation) -> Segment:
        text = self._prompt_text(conversation)
        return Segment(text, scored=False, marker=_marker(text))

    def _prompt_text(self, conversation: Conversation) -> str:
        if conversation.instruction:
            return self._written(conversation.instruction, conversation.input)
        if conversation.prompt.rstrip().endswith(RESPONSE_MARK):
            return conversation.prompt
        return self._written(conversation.prompt or self._only_question(conversation), "")

    def _only_question(self, conversation: Conversation) -> str:
        history = conversation.history
        if len(history) == 1:
            return history[0]["content"]
        what = "a system message" if history[0]["role"] == "system" else "several turns"
        raise Mistake(
            conversation.origin, f"{what}, for which template '{self.name}' has no place", "use template: chat"
        )

    @abstractmethod
    def _written(self, instruction: str, context: str) -> str: ...


def _marker(prompt: str) -> int:
    """How long the end of `prompt` is that asks for the response: its mark with the newlines around, or only those."""
    before = prompt.rstrip().removesuffix(RESPONSE_MARK)
    newlines = len(before[-2:]) - len(before[-2:].rstrip("\n"))
    return len(prompt) - len(before) + newlines


class Alpaca(TextTemplate):
    """The Alpaca text of the DSKD line, character by character."""

    name = "alpaca"

    def _written(self, instruction: str, context: str) -> str:
        paired = ", paired with an input that provides further context" if context else ""
        given = f"### Input:\n{context}\n\n" if context else ""
        return (
            f"Below is an instruction that describes a task{paired}. "
            "Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n{given}### Response:\n"
        )

    def _further(self, instruction: str) -> str:
        return Short()._written(instruction, "")  # the preamble is said once


class Short(TextTemplate):
    """Alpaca's marks without its preamble."""

    name = "short"

    def _written(self, instruction: str, context: str) -> str:
        return f"### Instruction:\n{question(instruction, context)}\n\n### Response:\n"


class Plain(TextTemplate):
    """A prompt as it is; an instruction or a message on a line of its own."""

    name = "plain"

    def _prompt_text(self, conversation: Conversation) -> str:
        return conversation.prompt or super()._prompt_text(conversation)

    def _written(self, instruction: str, context: str) -> str:
        return question(instruction, context) + "\n"


@dataclass(frozen=True)
class _Turn:
    """One assistant's turn of a chat, as it looks when it is written."""

    given: Segment
    response: str
    content: str

    @property
    def through(self) -> str:
        return self.given.text + self.response

    @property
    def said(self) -> Segment:
        return Segment(self.response, scored=True, special=True, words=self.content)

    @property
    def closed(self) -> bool:
        """Whether the template writes anything after the content, by which a model learns to stop."""
        return not self.response.rstrip().endswith(self.content.rstrip())


class Chat(Template):
    """The tokenizer's own chat template; see this module's head.

    Names of special tokens inside a message are read as those tokens, as wherever a rendered chat is tokenised; such
    conversations are counted.
    """

    name = "chat"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise Mistake(
                str(tokenizer.name_or_path),
                "this tokenizer has no chat template",
                "use template: alpaca or plain, or the tokenizer of a chat model",
            )
        self.tokenizer = tokenizer
        self.special_tokens = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))

    def continued(self, said: Sequence[str], origin: str) -> Segment:
        roles = ("user", "assistant")
        messages = tuple({"role": roles[place % 2], "content": text} for place, text in enumerate(said))
        return self._given(Conversation(origin, messages), messages)

    def _examples(self, conversation: Conversation) -> list[Example]:
        messages = conversation.messages
        turns = [self._turn(conversation, i) for i, message in enumerate(messages) if message["role"] == "assistant"]
        told = any(self.special_tokens.search(message["content"]) for message in messages)
        remarks = (SPECIAL_TEXT,) if told else ()
        if all(after.given.text.startswith(before.through) for before, after in pairwise(turns)):
            return [self._one_example(conversation, turns, remarks)]
        return [
            Example(
                (turn.given, turn.said),
                conversation.origin,
                (turn.content,),
                turn.closed,
                (*remarks, TURN_APART),
            )
            for turn in turns
        ]

    def _one_example(self, conversation: Conversation, turns: list[_Turn], remarks: tuple[str, ...]) -> Example:
        segments: list[Segment] = []
        written = ""
        for turn in turns:
            given = turn.given.text[len(written) :]
            segments.append(replace(turn.given, text=given, marker=min(turn.given.marker, len(given))))
            segments.append(turn.said)
            written = turn.through
        return Example(tuple(segments), conversation.origin, conversation.references, turns[-1].closed, remarks)

    def _turn(self, conversation: Conversation, i: int) -> _Turn:
        given = self._given(conversation, conversation.messages[:i])
        through = self._render(conversation, conversation.messages[: i + 1])
        content = conversation.messages[i]["content"]
        if not through.startswith(given.text) or len(through) == len(given.text):
            raise Mistake(
                f"{conversation.origin}: messages[{i}]",
                "the chat template writes this turn otherwise than its generation prompt begins it",
                "mend the template, or use template: alpaca or plain",
            )
        return _Turn(given, through[len(given.text) :], content)

    def _prompt(self, conversation: Conversation) -> Segment:
        return self._given(conversation, conversation.history)

    def _given(self, conversation: Conversation, messages: tuple[Message, ...]) -> Segment:
        """All before an assistant's turn.

        Its marker is what follows the last message's own text: the end of that turn and the assistant's header.
        """
        text = self._render(conversation, messages, generation_prompt=True)
        without_header = self._render(conversation, messages)
        last = messages[-1]["content"].strip()
        if not text.startswith(without_header):
            return Segment(text, scored=False, special=True)
        found = without_header.rfind(last) if last else -1
        body = found + len(last) if found >= 0 else len(without_header)
        return Segment(text, scored=False, marker=len(text) - body, special=True)

    def _render(
        self, conversation: Conversation, messages: tuple[Message, ...], *, generation_prompt: bool = False
    ) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise Mistake(conversation.origin, f"the chat template refuses this conversation: {error}") from error


TEXT_TEMPLATES: dict[str, type[TextTemplate]] = {template.name: template for template in (Alpaca, Short, Plain)}
TEMPLATES = (*TEXT_TEMPLATES, Chat.name)


def build(name: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Template:
    """The template called `name`; only `chat` asks for a tokenizer.

    Raises:
        Mistake: there is no such template, or the tokenizer has no chat template.
    """
    if name in TEXT_TEMPLATES:
        return TEXT_TEMPLATES[name]()
    if name != Chat.name:
        raise unknown_name("data.template", "template", name, TEMPLATES)
    if tokenizer is None:
        raise ValueError("template 'chat' is the tokenizer's own and needs it")
    return Chat(tokenizer)
