"""What every token of a tokenizer stands for, in bytes of text, so that tokens of unlike tokenizers can be compared.

    'Ġthe' (byte-level), '▁the' (SentencePiece), 'the' (WordPiece, which marks what goes on: '##the'): all b" the"

How a tokenizer writes its tokens is read from its own parts (model, normalizer, pre-tokenizer, decoder), never from its
vocabulary: Llama's has the character that GPT-2 writes for a space.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from stillhouse.data.tokenizer import ids_of
from stillhouse.mistakes import Mistake

Kind = Literal["byte_level", "sentencepiece", "wordpiece", "characters"]

BYTE_LEVEL_BLANK, SENTENCEPIECE_BLANK = "\u0120", "\u2581"
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")

# One token may play several of these (GPT-2's <|endoftext|> plays all but pad): it has the first that it plays. What a
# model predicts is the end of a text; the others are only ever fed, so no other role may take the end's place.
ROLES = ("eos", "bos", "unk", "pad")

# Pre-tokenizers that drop the blanks between words, so that only the tokens can say where a word begins.
DROP_BLANKS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}


@dataclass(frozen=True)
class Pieces:
    """What the tokens of a tokenizer stand for; V is the greatest id plus one.

    Attributes:
        raw: [V] the token strings as in the vocabulary, by id; "" for an id without a token.
        content: [V] the bytes of text that the token stands for, a word marker as a real leading blank; b"" for special
            tokens and for ids without a token.
        special: The role of every special token by its id: "eos", "bos", "unk", "pad" or "other".
        kind: How the tokenizer writes text as tokens.
        marker: What that writes for the blank before a word ("Ġ", "▁"), or where a word goes on ("##"), or "".
        added: The ids of tokens, not special, that were added to the vocabulary: plain text without markers.
        prefix_blank: Whether a text's first token stands for a blank that the text does not have, as in Llama's
            tokenizer. In front of a text that begins with a blank some put another (Mistral's), some none (Llama's).
    """

    raw: tuple[str, ...]
    content: tuple[bytes, ...]
    special: dict[int, str]
    kind: Kind
    marker: str
    added: frozenset[int]
    prefix_blank: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Pieces:
        """Read a fast tokenizer.

        Raises:
            Mistake: the tokenizer is not a fast one.
        """
        special = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
        return _read(tokenizer, (len(tokenizer), *special))

    def __len__(self) -> int:
        """V."""
        return len(self.raw)

    def join(self, ids: Iterable[int]) -> bytes:
        """The bytes that the tokens `ids` stand for together, with the blank in front that the tokenizer put there."""
        return b"".join(self.content[index] for index in ids)

    @property
    def roles(self) -> dict[str, int]:
        """The id that plays each role, other special tokens left out."""
        return {role: index for index, role in self.special.items() if role != "other"}


@lru_cache(maxsize=8)
def _read(tokenizer: PreTrainedTokenizerBase, known: tuple[Any, ...]) -> Pieces:
    """`Pieces.of`, which takes a second for a large vocabulary; `known` is what of a tokenizer may change later."""
    parts = _parts(tokenizer)
    special = _special(tokenizer, parts)
    added = frozenset(token["id"] for token in parts["added_tokens"] if token["id"] not in special)
    kind, marker = _kind(parts)
    vocabulary = tokenizer.get_vocab()
    raw = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        raw[index] = token
    read = _Reader(parts, kind, marker)
    content = [b"" if i in special else read.added(t) if i in added else read.token(t) for i, t in enumerate(raw)]
    front = b"".join(content[index] for index in ids_of(tokenizer, "a"))
    return Pieces(tuple(raw), tuple(content), special, kind, marker, added, front.startswith(b" "))


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """32 hexadecimal digits that are the same for tokenizers with the same ids, special tokens and ways to split.

    What stands around a text, how it is padded and the tokenizer's name do not count.

    Raises:
        Mistake: the tokenizer is not a fast one.
    """
    parts = _parts(tokenizer)
    content = {
        "model": parts["model"],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "added": sorted((token["id"], token["content"]) for token in parts["added_tokens"]),
        "special": sorted(_special(tokenizer, parts).items()),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class _Reader:
    """Token strings -> bytes of text, for one tokenizer."""

    def __init__(self, parts: Mapping[str, Any], kind: Kind, marker: str) -> None:
        self.kind: Kind = kind
        self.marker = marker
        self.suffix = parts["model"].get("end_of_word_suffix") or ""
        self.has_byte_pieces = bool(parts["model"].get("byte_fallback")) or bool(_of_type(parts, "ByteFallback"))
        self.is_words = any(part["type"] in DROP_BLANKS for part in _walk(parts["pre_tokenizer"])) and not self.suffix
        self.bytes_of = {character: value for value, character in enumerate(_byte_alphabet())}

    def token(self, token: str) -> bytes:
        """A token of the model's own vocabulary."""
        if self.suffix and token.endswith(self.suffix):  # a word's end, as in the first GPT
            return self._bytes(token.removesuffix(self.suffix)) + b" "
        return self._bytes(token)

    def added(self, token: str) -> bytes:
        """A token that was added: it is found in the text as it stands."""
        return (token.replace(self.marker, " ") if self.kind == "sentencepiece" else token).encode()

    def _bytes(self, token: str) -> bytes:
        match self.kind:
            case "byte_level":
                if all(character in self.bytes_of for character in token):
                    return bytes(self.bytes_of[character] for character in token)
                return token.encode()  # as the decoder does
            case "sentencepiece":
                if self.has_byte_pieces and (found := BYTE_PIECE.fullmatch(token)):
                    return bytes([int(found[1], 16)])
                return token.replace(self.marker, " ").encode()
            case "wordpiece":
                goes_on = len(token) > len(self.marker) and token.startswith(self.marker)
                return (token.removeprefix(self.marker) if goes_on else f" {token}" if token else "").encode()
            case "characters":
                return (f" {token}" if self.is_words and token else token).encode()


def _kind(parts: Mapping[str, Any]) -> tuple[Kind, str]:
    if _of_type(parts, "ByteLevel"):
        return "byte_level", BYTE_LEVEL_BLANK
    for metaspace in _of_type(parts, "Metaspace"):
        return "sentencepiece", metaspace["replacement"]
    for replace in _of_type(parts, "Replace"):
        pattern = replace["pattern"].get("String")
        if " " in (pattern, replace["content"]) and SENTENCEPIECE_BLANK in (pattern, replace["content"]):
            return "sentencepiece", SENTENCEPIECE_BLANK
    prefix = parts["model"].get("continuing_subword_prefix")
    if prefix:
        return "wordpiece", prefix
    return "characters", ""


def _byte_alphabet() -> list[str]:
    """The characters that GPT-2 writes for the bytes 0 to 255: printable ones themselves, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in printable else next(others)) for value in range(256)]


def _special(tokenizer: PreTrainedTokenizerBase, parts: Mapping[str, Any]) -> dict[int, str]:
    """Every special token's role, by ascending id."""
    ids = {*tokenizer.all_special_ids, *(token["id"] for token in parts["added_tokens"] if token["special"])}
    roles = {}
    for role in ROLES:
        index = getattr(tokenizer, f"{role}_token_id")
        index = _unknown(tokenizer, parts["model"]) if index is None and role == "unk" else index
        if index is not None:
            roles.setdefault(index, role)
    return {index: roles.get(index, "other") for index in sorted(ids | roles.keys())}


def _unknown(tokenizer: PreTrainedTokenizerBase, model: Mapping[str, Any]) -> int | None:
    """The model's own token for what it does not know, of which the tokenizer's settings need not speak."""
    index = model.get("unk_id")
    return index if index is not None else tokenizer.get_vocab().get(model.get("unk_token") or "")


def _parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json says."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        where = str(tokenizer.name_or_path)
        raise Mistake(where, f"{type(tokenizer).__name__} is not a fast tokenizer", "convert it to a tokenizer.json")
    return json.loads(backend.to_str())


def _of_type(parts: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The parts of one type among everything that text passes on its way to tokens and back."""
    steps = (parts["normalizer"], parts["pre_tokenizer"], parts["decoder"])
    return [part for step in steps for part in _walk(step) if part["type"] == name]


def _walk(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A part and, of a sequence, everything in it."""
    if part is None:
        return
    yield part
    for inner in ("normalizers", "pretokenizers", "decoders"):
        for child in part.get(inner, ()):
            yield from _walk(child)
