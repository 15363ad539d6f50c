from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken, PreTrainedTokenizerFast

from stillhouse.data.pieces import Pieces, fingerprint
from stillhouse.data.tokenizer import ids_of, load_tokenizer
from tests.data.kinds import characters, unigram, wordpiece
from tests.data.small import CORPUS, byte_level, metaspace

# What trips readers of tokens: words without blanks, joined emoji, marks, line ends, the markers of other kinds.
BITS = [
    "the", " The", "  ", "\n", "\r\n", "\t", "a\u0301", "na\u00efve", "\u4f60\u597d", "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u0120", "##", "<0x41>", "\u0e33", "\x00", "\ufffd", "\u00a0",
]  # fmt: skip
ANYTHING = st.lists(st.sampled_from(BITS) | st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
KNOWN = "".join(sorted({character for text in CORPUS for character in text} - {"\n", "\r", "\u2581"}))


def text_of(pieces: Pieces, tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    """The text that the tokens of `text` stand for, without a blank that the tokenizer put in front."""
    joined = pieces.join(ids_of(tokenizer, text)).decode()
    return joined[1:] if pieces.prefix_blank and joined != text and joined.startswith(" ") else joined


REVERSIBLE = {"byte_level": byte_level(), "unigram": unigram(byte_fallback=True), "characters": characters()}
READ = {name: Pieces.of(tokenizer) for name, tokenizer in REVERSIBLE.items()}


@pytest.mark.parametrize("name", ["byte_level", "unigram"])
@given(bits=ANYTHING)
def test_contents_spell_any_text(name: str, bits: list[str]):
    text = "".join(bits).replace("<0x41>", "<0x4>" if name == "unigram" else "<0x41>")  # Unigram itself takes it for A
    assert text_of(READ[name], REVERSIBLE[name], text) == text


@given(text=st.text("abc z\n"))
def test_contents_of_single_characters_spell_a_text(text: str):
    assert text_of(READ["characters"], REVERSIBLE["characters"], text) == text


@pytest.mark.parametrize("tokenizer", [metaspace(), unigram(byte_fallback=False)], ids=["bpe", "unigram"])
@given(text=st.text(KNOWN))
def test_without_byte_pieces_contents_spell_what_the_vocabulary_knows(tokenizer: PreTrainedTokenizerFast, text: str):
    pieces = Pieces.of(tokenizer)
    assert pieces.kind == "sentencepiece"
    assert text_of(pieces, tokenizer, text) == text


def test_wordpiece_marks_where_a_word_goes_on():
    tokenizer, text = wordpiece(), "Write a RESPONSE, thank you."
    pieces = Pieces.of(tokenizer)
    assert (pieces.kind, pieces.marker, pieces.prefix_blank) == ("wordpiece", "##", True)
    joined = pieces.join(ids_of(tokenizer, text)).decode()
    assert joined == " write a response , thank you ."
    assert {raw: pieces.content[at] for at, raw in enumerate(pieces.raw)}["##e"] == b"e"


def test_how_each_kind_is_recognised():
    kinds = [Pieces.of(t) for t in (byte_level(), metaspace(), unigram(byte_fallback=True), wordpiece(), characters())]
    assert [(pieces.kind, pieces.marker, pieces.prefix_blank) for pieces in kinds] == [
        ("byte_level", "\u0120", False),
        ("sentencepiece", "\u2581", True),
        ("sentencepiece", "\u2581", True),
        ("wordpiece", "##", True),
        ("characters", "", False),
    ]


def test_a_vocabulary_with_the_characters_of_another_kind_misleads_nobody():
    tokenizer = unigram(byte_fallback=False)
    tokenizer.add_tokens(["\u0120the", "##the", "<0x41>"])
    pieces = Pieces.of(tokenizer)
    assert pieces.kind == "sentencepiece"
    assert pieces.content[-3:] == ("\u0120the".encode(), b"##the", b"<0x41>")
    assert pieces.added == {len(pieces) - 3, len(pieces) - 2, len(pieces) - 1}


def test_byte_pieces_are_bytes_only_where_the_model_means_them():
    pieces = Pieces.of(unigram(byte_fallback=True))
    contents = dict(zip(pieces.raw, pieces.content, strict=True))
    assert (contents["<0x41>"], contents["<0xE4>"]) == (b"A", b"\xe4")
    model = json.loads(unigram(byte_fallback=True).backend_tokenizer.to_str())["model"]
    other = Pieces.of(changed(unigram(byte_fallback=True), model={**model, "byte_fallback": False}))
    assert dict(zip(other.raw, other.content, strict=True))["<0x41>"] == b"<0x41>"


def test_an_added_token_of_a_byte_level_tokenizer_is_plain_text():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("caf\u00e9", normalized=False)])
    pieces = Pieces.of(tokenizer)
    assert pieces.content[-1] == "caf\u00e9".encode()  # and not the one byte that GPT-2 writes so
    assert pieces.join(ids_of(tokenizer, "a caf\u00e9 ")) == "a caf\u00e9 ".encode()


def test_special_tokens_have_the_first_role_that_they_play_and_stand_for_nothing():
    pieces = Pieces.of(byte_level())  # it pads with its end
    assert pieces.special == {0: "eos", 1: "other", 2: "other"}
    assert pieces.roles == {"eos": 0}
    assert pieces.content[:3] == (b"", b"", b"")
    assert Pieces.of(metaspace()).special == {0: "unk", 1: "bos", 2: "eos"}
    assert Pieces.of(unigram(byte_fallback=False)).special == {0: "pad", 1: "eos", 2: "unk"}  # the model's own unknown


def test_ids_without_a_token_stand_for_nothing():
    parts = json.loads(characters().backend_tokenizer.to_str())
    parts["model"]["vocab"]["<end>"] += 2
    for token in parts["added_tokens"]:
        token["id"] += 2
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=type(characters().backend_tokenizer).from_str(json.dumps(parts)), eos_token="<end>"
    )
    pieces = Pieces.of(tokenizer)
    assert len(pieces) == 31
    assert (pieces.raw[28:30], pieces.content[28:30]) == (("", ""), (b"", b""))
    assert pieces.special == {30: "eos"}


def test_a_copy_has_the_same_fingerprint_however_it_pads(tmp_path: Path):
    for number, tokenizer in enumerate((byte_level(), metaspace(), unigram(byte_fallback=True), wordpiece())):
        folder = tmp_path / str(number)
        tokenizer.save_pretrained(folder)
        copy = load_tokenizer(folder)
        copy.chat_template = "{{ messages }}"
        assert fingerprint(copy) == fingerprint(tokenizer)
        assert dataclasses.asdict(Pieces.of(copy)) == dataclasses.asdict(Pieces.of(tokenizer))


def with_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(["<x>"])
    return tokenizer


def ending_with(tokenizer: PreTrainedTokenizerFast, token: str) -> PreTrainedTokenizerFast:
    tokenizer.eos_token = token
    return tokenizer


def changed(tokenizer: PreTrainedTokenizerFast, **parts: object) -> PreTrainedTokenizerFast:
    content = {**json.loads(tokenizer.backend_tokenizer.to_str()), **parts}
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)


def without_last_merge(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return changed(tokenizer, model={**model, "merges": model["merges"][:-1]})


def test_what_splits_or_ends_a_text_otherwise_has_another_fingerprint():
    prints = [
        fingerprint(tokenizer)
        for tokenizer in (
            byte_level(),
            with_token(byte_level()),
            ending_with(byte_level(), "<|im_end|>"),
            without_last_merge(byte_level()),
            changed(byte_level(), normalizer={"type": "NFC"}),
            changed(byte_level(), pre_tokenizer={"type": "Digits", "individual_digits": True}),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in prints)
