"""What a row says, whatever its format: messages, an instruction, a prompt or a text; and its responses.

Formats, by the first key that is there (other keys are the user's own notes):

    {prompt, chosen, rejected}          a pair: texts or messages; without a prompt, messages that begin with it
    {messages: [{role, content}, ...]}
    {instruction, input, output}        input may be absent or empty
    {prompt, completion}
    {text}

`output`, `completion` and a `chosen` text mean the same; the first two may be a list of references. A row may hold both
`prompt` (rendered already) and `instruction`, as the files of the DSKD line do: each template takes what suits it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from stillhouse.data.rows import Row
from stillhouse.mistakes import Mistake, shorten, unknown_name

Message = Mapping[str, Any]

ACCEPTED = (
    "a row is {messages}, {prompt, completion}, {instruction, input, output}, {prompt, chosen, rejected} or {text}"
)
RESPONSE_KEYS = ("output", "completion", "chosen")
_BESIDE_A_PAIR = ("messages", "output", "completion", "text")
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """A row, read and checked.

    Attributes:
        origin: Of the row.
        messages: What a chat template renders; it ends with the response where there is one. Empty for {text}.
        references: The acceptable responses, first the one to train on; empty where the row has none.
        prompt: {prompt} as given, else "".
        instruction: {instruction}, else "".
        input: {input}, else "".
        text: {text}, else "".
    """

    origin: str
    messages: tuple[Message, ...] = ()
    references: tuple[str, ...] = ()
    prompt: str = ""
    instruction: str = ""
    input: str = ""
    text: str = ""

    @property
    def history(self) -> tuple[Message, ...]:
        """The messages before the last response."""
        return self.messages[:-1] if self.references else self.messages

    def require_response(self) -> None:
        """Raise a Mistake where there is nothing to learn."""
        if not self.references:
            why = "the last message is not the assistant's"
            if self.prompt or self.instruction:
                why = "'output' (or 'completion') is missing or empty"
            raise Mistake(self.origin, f"a row without a response: {why}", "give it one or remove the row")


def question(instruction: str, context: str) -> str:
    """An instruction and its input as one text, for templates that have one place for both."""
    return f"{instruction}\n{context}" if context else instruction


def read(row: Row) -> Conversation:
    """The conversation in a row of any accepted format.

    Raises:
        Mistake: at the row's origin: no accepted format, a misspelt key, a value that is not text, roles out of order.
    """
    fields = {key: value for key, value in row.fields.items() if value is not None}
    _refuse_misspelt(frozenset(fields), row.origin)
    if {"chosen", "rejected"} <= fields.keys():  # a data set may repeat what is chosen under another key
        fields = {key: value for key, value in fields.items() if key not in _BESIDE_A_PAIR}
    if "messages" in fields or isinstance(fields.get("chosen"), list):
        messages = (
            _chosen(fields, row.origin) if "messages" not in fields else _messages(fields, "messages", row.origin)
        )
        answered = messages[-1]["role"] == "assistant"
        return Conversation(row.origin, messages, (messages[-1]["content"],) if answered else ())
    if "instruction" in fields or "prompt" in fields:
        return _single_turn(fields, row.origin)
    if "text" in fields:
        return Conversation(row.origin, text=_text(fields, "text", row.origin, required=True))
    keys = shorten(", ".join(map(str, row.fields)), 60) or "none"
    raise Mistake(row.origin, f"no accepted keys (has: {keys})", ACCEPTED)


def _single_turn(fields: Mapping[str, Any], origin: str) -> Conversation:
    prompt, instruction = _text(fields, "prompt", origin), _text(fields, "instruction", origin)
    if not prompt.strip() and not instruction.strip():
        _text(fields, "instruction" if "instruction" in fields else "prompt", origin, required=True)
    given = _text(fields, "input", origin) if instruction else ""
    references = _references(fields, origin)
    asked: Message = {"role": "user", "content": question(instruction, given) if instruction else prompt}
    answer: tuple[Message, ...] = ({"role": "assistant", "content": references[0]},) if references else ()
    return Conversation(origin, (asked, *answer), references, prompt, instruction, given)


def _references(fields: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    key = next((key for key in RESPONSE_KEYS if key in fields), None)
    if key is None:
        return ()
    if not isinstance(fields[key], list):
        only = _text(fields, key, origin)
        return (only,) if only.strip() else ()
    items = {f"{key}[{number}]": value for number, value in enumerate(fields[key])}
    return tuple(_text(items, name, origin, required=True) for name in items)


def rejected(row: Row) -> Row:
    """`row` with what it says is `rejected` as its response.

    Raises:
        Mistake: it does not say both, or they answer different prompts.
    """
    for key in ("chosen", "rejected"):
        if not row.fields.get(key):
            raise Mistake(row.origin, f"has no '{key}'", "a pair is {prompt, chosen, rejected}")
    other = Row({**row.fields, "chosen": row.fields["rejected"]}, row.origin)
    if read(other).history != read(row).history:
        raise Mistake(row.origin, "'chosen' and 'rejected' answer different prompts", "remove the row")
    return other


def _chosen(fields: Mapping[str, Any], origin: str) -> tuple[Message, ...]:
    """The messages of {chosen}, and before them those of {prompt}, unless they begin with it themselves."""
    said, prompt = fields["chosen"], fields.get("prompt", [])
    begins = bool(said) and isinstance(said[0], Mapping) and said[0].get("role") in ("system", "user")
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return _messages({"chosen": said if begins or not isinstance(asked, list) else [*asked, *said]}, "chosen", origin)


def _messages(fields: Mapping[str, Any], key: str, origin: str) -> tuple[Message, ...]:
    value = fields[key]
    if not isinstance(value, list) or not value:
        raise Mistake(origin, f"'{key}' is not a list of messages", 'write [{"role": "user", "content": ...}, ...]')
    before = ""
    for number, message in enumerate(value):
        name = f"{key}[{number}]"
        if not isinstance(message, Mapping):
            raise Mistake(origin, f"{name} is not an object", 'a message is {"role": ..., "content": ...}')
        role = message.get("role")
        if role not in ROLES:
            raise unknown_name(f"{origin}: {name}", "role", str(role), ROLES)
        if "content" not in message or message["content"] is None:
            raise Mistake(f"{origin}: {name}", "has no 'content'", 'a message is {"role": ..., "content": ...}')
        _text(message, "content", f"{origin}: {name}", required=role == "assistant")
        _check_order(before, role, f"{origin}: {name}")
        before = role
    if not any(message["role"] == "user" for message in value):
        raise Mistake(origin, "no message is from the user", "a conversation needs one before the assistant's")
    return tuple(value)


# Which roles may stand before a role; "" is the beginning.
MAY_FOLLOW = {
    "system": ("",),
    "user": ("", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def _check_order(before: str, role: str, where: str) -> None:
    if before not in MAY_FOLLOW[role]:
        after = f"comes after '{before}'" if before else "comes first"
        allowed = " or ".join(f"after '{name}'" if name else "first" for name in MAY_FOLLOW[role])
        raise Mistake(where, f"'{role}' {after}", f"it may only come {allowed}")


def _text(fields: Mapping[str, Any], key: str, origin: str, *, required: bool = False) -> str:
    """The string at `key`, "" where it is absent; `required` refuses an empty one."""
    value = fields.get(key)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise Mistake(origin, f"'{key}' is not a text but {shorten(repr(value), 40)}", "write it as a string")
    if required and not value.strip():
        raise Mistake(origin, f"'{key}' is empty", "fill it or remove the row")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write and no tokenizer can read
            raise Mistake(origin, f"'{key}' holds a broken character at {error.start}", "mend the text") from error
    return value


def _refuse_misspelt(keys: frozenset[str], origin: str) -> None:
    """A key almost like one that the row's format wants and lacks would otherwise be dropped without a word."""
    found = _misspelt(keys)
    if found:
        raise Mistake(origin, f"unknown key '{found[0]}'", f"did you mean '{found[1]}'?")


@lru_cache(maxsize=256)
def _misspelt(keys: frozenset[str]) -> tuple[str, str] | None:
    """(wrong, right), or None. The rows of a file share their keys, so this is asked once or twice a file."""
    asked = keys & {"instruction", "prompt"}
    if "messages" in keys or ("text" in keys and not asked):
        return None
    wanted: tuple[tuple[str, ...], ...] = (RESPONSE_KEYS, ("input",)) if "instruction" in keys else (RESPONSE_KEYS,)
    if not asked:
        wanted = (("messages",), ("instruction", "prompt"), ("text",))
    for name in (name for names in wanted if keys.isdisjoint(names) for name in names):
        near = difflib.get_close_matches(name, sorted(keys), n=1, cutoff=0.8)
        if near:
            return near[0], name
    return None
