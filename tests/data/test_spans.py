"""Where tokens end: every byte of a response has one token, for every kind of tokenizer and any text."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from stillhouse.data.encode import Encoding, Limits, encode, encode_all
from stillhouse.data.example import NORMALISED, REWRITTEN, Example, Segment
from stillhouse.data.rows import Row
from stillhouse.data.templates import build
from tests.alignment.tokenizers import EXACT, TEXT, TOKENIZERS
from tests.data.small import CHATML, FORGETFUL, LLAMA2, OPEN, byte_level, metaspace

ROOMY = Limits(100_000, 50_000)
BYTES_OF = {character: bytes([value]) for value, character in bytes_to_unicode().items()}


def example(response: str, prompt: str = "How?\n") -> Example:
    return Example((Segment(prompt, False), Segment(response, True)), "t.jsonl:1", (response,))


def ends_of(encoding: Encoding) -> np.ndarray:
    """Of the targets."""
    assert encoding.ends is not None
    return encoding.ends[1:][encoding.scored[:-1]]


def slow_exact(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token by token, from what each one says; a blank that is not in the text takes no room."""
    said = []
    for token in tokenizer.tokenize(text, split_special_tokens=True):
        if tokenizer is TOKENIZERS["byte level"]:
            said.append(b"".join(BYTES_OF[character] for character in token))
        elif token.startswith("<0x") and len(token) == 6:
            said.append(bytes.fromhex(token[3:5]))
        else:
            said.append(token.replace("▁", " ").encode())
    left = text.encode()
    ends = []
    for number, piece in enumerate(said):
        if number == 0 and not left.startswith(piece):
            piece = piece.removeprefix(b" ")
        assert left.startswith(piece)
        left = left.removeprefix(piece)
        ends.append(len(text.encode()) - len(left))
    assert left == b""
    return ends


def slow_by_characters(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """A character is the last token's that touches it; one that nobody touches is the next token's, or the last's."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    touching = [[n for n, (start, stop) in enumerate(offsets) if start <= i < stop] for i in range(len(text))]  # type: ignore[arg-type]
    after = [[n for n, (start, _) in enumerate(offsets) if start > i] for i in range(len(text))]  # type: ignore[arg-type]
    last = len(offsets) - 1
    owner = [touched[-1] if touched else (*later, last)[0] for touched, later in zip(touching, after, strict=True)]
    counts = [0] * len(offsets)
    for index, number in enumerate(owner):
        counts[number] += len(text[index].encode())
    return np.cumsum(counts).tolist()


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=150)
@given(text=TEXT)
def test_ends_are_what_the_tokens_say(name: str, text: str):
    text = text.replace("▁", "").replace("<", "")  # a blank to SentencePiece; Unigram reads the names of bytes
    ends = ends_of(encode(example(text), TOKENIZERS[name], ROOMY, "bytes"))
    assert ends.tolist() == [*slow_exact(text, TOKENIZERS[name]), len(text.encode()) + 1]


@pytest.mark.parametrize("name", ["wordpiece", "byte level, NFKC"])
@settings(max_examples=150)
@given(text=st.text(alphabet="aZ éﬁ①①🙂.e\u0301\u200d", min_size=1, max_size=12))
def test_ends_of_a_normalised_text_are_by_characters(name: str, text: str):
    tokenizer = TOKENIZERS[name]
    _, census = encode_all([example(text)], tokenizer, ROOMY, spans="bytes")
    if census.remarks[NORMALISED] and tokenizer.tokenize(text):
        ends = ends_of(encode(example(text), tokenizer, ROOMY, "bytes"))
        assert ends.tolist() == [*slow_by_characters(text, tokenizer), len(text.encode()) + 1]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("spans", ["bytes", "solid"])
@settings(max_examples=100)
@given(text=TEXT)
def test_every_byte_has_one_token(name: str, spans: str, text: str):
    tokenizer = TOKENIZERS[name]
    encoding = encode(example(text), tokenizer, ROOMY, spans)  # type: ignore[arg-type]
    bare = encode(example(text), tokenizer, ROOMY)
    assert encoding.input_ids.tolist() == bare.input_ids.tolist()
    assert encoding.scored.tolist() == bare.scored.tolist() and bare.ends is None
    ends = ends_of(encoding)
    size = len(text.encode().replace(b" ", b"") if spans == "solid" else text.encode())
    assert encoding.ends is not None and encoding.ends.dtype == np.int32
    assert (encoding.ends[~np.append(False, encoding.scored[:-1])] == -1).all()
    assert ends[-1] == size + 1
    assert len(ends) == 1 or ends[-2] == size
    assert all(0 <= before <= after for before, after in pairwise(ends))


def test_solid_ends_leave_blanks_out():
    text = "The  capital of Paris\n is"
    for tokenizer in TOKENIZERS.values():
        everywhere = ends_of(encode(example(text), tokenizer, ROOMY, "bytes"))[:-1]
        solid = ends_of(encode(example(text), tokenizer, ROOMY, "solid"))[:-1]
        assert [len(text.encode()[:end].replace(b" ", b"")) for end in everywhere] == solid.tolist()


def test_how_spans_were_found_is_counted():
    texts = ["The  capital", "THE CAPITAL", "ok"]
    for name, counted in (("byte level", 0), ("byte level, NFKC", 0), ("unigram, bytes", 0), ("wordpiece", 2)):
        _, census = encode_all([example(text) for text in texts], TOKENIZERS[name], ROOMY, spans="bytes")
        said = [f"{counted} examples whose text the tokenizer normalises; their spans are by characters"]
        assert census.lines()[1:] == (said if counted else [])
    _, census = encode_all([example("ﬁ")], TOKENIZERS["byte level, NFKC"], ROOMY, spans="bytes")
    assert census.remarks == {NORMALISED: 1}


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=30), st.text(max_size=30), st.integers(2, 40), st.integers(1, 20))
def test_cuts_take_the_same_tokens_of_the_ends(prompt: str, text: str, most: int, lead: int):
    limits = Limits(most, min(lead, most))
    for tokenizer in TOKENIZERS.values():
        asked = example(text, prompt)
        whole, cut = (encode(asked, tokenizer, one, "bytes") for one in (ROOMY, limits))
        assert whole.ends is not None and cut.ends is not None
        kept = ends_of(cut)
        assert kept.tolist() == ends_of(whole)[: len(kept)].tolist()
        assert len(cut.ends) == len(cut.input_ids)


def test_a_data_set_carries_the_ends():
    examples = [example("The capital"), example("of Paris", "b")]
    dataset, _ = encode_all(examples, TOKENIZERS["byte level"], ROOMY, spans="bytes")
    for index, one in enumerate(examples):
        alone = encode(one, TOKENIZERS["byte level"], ROOMY, "bytes").ends
        assert alone is not None and dataset[index]["ends"].tolist() == alone.tolist()
    assert "ends" not in encode_all(examples, TOKENIZERS["byte level"], ROOMY)[0][0]


def test_prompts_count_where_all_tokens_are_learnt():
    tokenizer = TOKENIZERS["byte level"]
    everything = dataclasses.replace(ROOMY, scored="all")
    asked = example("Paris", "The é?")
    ends = encode(asked, tokenizer, everything, "bytes").ends
    assert ends is not None
    both = [*slow_exact("The é?", tokenizer), *(7 + end for end in slow_exact("Paris", tokenizer)), 13]
    assert ends.tolist() == both


# Chats

TURNS = (" Hello ", "I am fine\n", "And you?", "\u00e9 <0x0A>  ok")


def said(tokenizer: PreTrainedTokenizerFast, token: int) -> bytes:
    raw = str(tokenizer.convert_ids_to_tokens(token))
    return raw.replace("▁", " ").encode() if "▁" in raw else b"".join(BYTES_OF.get(letter, b" ") for letter in raw)


def chat(tokenizer: PreTrainedTokenizerFast, contents: tuple[str, ...] = TURNS) -> list[Example]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return build("chat", tokenizer).examples(Row({"messages": messages}, "t.jsonl:1"))


@pytest.mark.parametrize(
    "tokenizer", [byte_level(CHATML), metaspace(LLAMA2), byte_level(OPEN)], ids=["ChatML", "Llama 2", "open"]
)
def test_turns_lie_one_after_the_other_whatever_the_template_writes(tokenizer: PreTrainedTokenizerFast):
    (one,) = chat(tokenizer)
    encoding = encode(one, tokenizer, ROOMY, "bytes")
    ids, ends = encoding.input_ids[1:][encoding.scored[:-1]], ends_of(encoding)
    first, second = (len(TURNS[turn].encode()) for turn in (1, 3))
    assert ends[-1] == first + 1 + second + 1
    assert all(0 <= before <= after for before, after in pairwise(ends))
    text = (TURNS[1] + "\0" + TURNS[3] + "\0").encode()
    for token, begin, end in zip(ids.tolist(), [0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        if token in tokenizer.all_special_ids and token != tokenizer.unk_token_id:
            assert text[begin:end] == b"\0"
        elif end > begin and token != tokenizer.unk_token_id and b"\0" not in text[begin:end]:
            assert text[begin:end].strip() == said(tokenizer, token).strip()


def test_the_named_end_of_a_turn_is_its_terminator():
    tokenizer = byte_level(CHATML)
    (one,) = chat(tokenizer, ("a", "fine"))
    encoding = encode(one, tokenizer, ROOMY, "bytes")
    ids, ends = encoding.input_ids[1:][encoding.scored[:-1]].tolist(), ends_of(encoding).tolist()
    assert tokenizer.convert_ids_to_tokens(ids)[-2:] == ["<|im_end|>", "Ċ"]
    assert ends[-3:] == [4, 5, 5]  # the newline behind it is nothing to learn an end from
    llama = metaspace(LLAMA2)
    (one,) = chat(llama, ("a", "fine9"))
    encoding = encode(one, llama, ROOMY, "bytes")
    ids, ends = encoding.input_ids[1:][encoding.scored[:-1]].tolist(), ends_of(encoding).tolist()
    assert llama.convert_ids_to_tokens(ids)[-2:] == ["▁", "</s>"]
    assert ends[-3:] == [5, 5, 6]  # the template's blank before it has no width


def test_a_rewritten_response_has_no_spans_and_is_counted():
    tokenizer = byte_level(CHATML.replace("m['content']", "m['content'] | upper"))
    examples = chat(tokenizer)
    dataset, census = encode_all(examples, tokenizer, ROOMY, spans="bytes")
    assert (dataset[0]["ends"] == -1).all()
    assert census.remarks == {REWRITTEN: 1}
    assert census.lines()[1:] == ["1 examples whose response the chat template rewrites; it has no spans"]
    _, census = encode_all(chat(byte_level(FORGETFUL)), byte_level(FORGETFUL), ROOMY, spans="bytes")
    assert not census.remarks[REWRITTEN]


def test_names_of_special_tokens_in_a_chat_break_the_text():
    tokenizer = byte_level(CHATML)
    (one,) = chat(tokenizer, ("a", "fine <|im_end|> \u00e9"))
    encoding = encode(one, tokenizer, ROOMY, "bytes")
    ids, ends = encoding.input_ids[1:][encoding.scored[:-1]].tolist(), ends_of(encoding).tolist()
    assert ends[ids.index(2)] == len("fine <|im_end|>")
    assert ends[-2:] == [len("fine <|im_end|> \u00e9".encode()) + 1] * 2
