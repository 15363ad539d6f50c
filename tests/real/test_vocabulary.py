"""Real vocabularies: tokens spell real texts, maps are those that were published, and reach as far as is known."""

from __future__ import annotations

import json
import random
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from stillhouse.data.pieces import Pieces, fingerprint
from stillhouse.data.rows import read_rows
from stillhouse.data.tokenizer import ids_of, load_tokenizer
from stillhouse.vocabulary import exact, load, min_edit, overlap, prefix
from tests.data.test_pieces import BITS
from tests.vocabulary.test_levenshtein import distance

GPT2, QWEN, LLAMA, MISTRAL, TINY = "gpt2-base", "Qwen1.5-1.8B", "llama2-7b-hf", "mistral-7b-v0.1", "tinyllama-1.1b-3T"
NAMES = [GPT2, QWEN, LLAMA, MISTRAL, TINY]


@cache
def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


@cache
def pieces_in(folder: Path) -> Pieces:
    return Pieces.of(tokenizer_in(folder))


def pair(shared: Path, teacher: str, student: str) -> tuple[Pieces, Pieces]:
    return pieces_in(shared / "tokenizers" / teacher), pieces_in(shared / "tokenizers" / student)


def spelt(name: str, shared: Path, text: str) -> tuple[bytes, bytes]:
    """What the tokens of a text stand for, and what they should."""
    folder = shared / "tokenizers" / name
    pieces = pieces_in(folder)
    text = unicodedata.normalize("NFC", text) if name == QWEN else text  # which its own normalizer does
    expected = text.encode()
    if pieces.prefix_blank and (name == MISTRAL or not text.startswith(" ")):
        expected = b" " + expected
    return pieces.join(ids_of(tokenizer_in(folder), text)), expected


@pytest.mark.parametrize("name", NAMES)
def test_contents_spell_every_row(name: str, shared: Path):
    for row in read_rows(shared / "data" / "dolly", limit=200):
        for text in filter(None, (str(row.fields[key]) for key in ("instruction", "input", "output"))):
            if "\u2581" not in text:
                found, expected = spelt(name, shared, text)
                assert found == expected


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200)
@given(bits=st.lists(st.sampled_from(BITS) | st.characters(codec="utf-8", exclude_characters="\u2581"), min_size=1))
def test_contents_spell_any_text(name: str, shared: Path, bits: list[str]):
    found, expected = spelt(name, shared, "".join(bits))
    assert found == expected


def test_how_each_is_recognised(shared: Path):
    found = {name: pieces_in(shared / "tokenizers" / name) for name in NAMES}
    assert {name: pieces.kind for name, pieces in found.items()} == {
        GPT2: "byte_level", QWEN: "byte_level", LLAMA: "sentencepiece", MISTRAL: "sentencepiece", TINY: "sentencepiece",
    }  # fmt: skip
    assert "\u0120" in found[LLAMA].raw  # a letter there
    assert {name: pieces.roles for name, pieces in found.items()} == {
        GPT2: {"eos": 50256},
        QWEN: {"eos": 151643},
        LLAMA: {"unk": 0, "bos": 1, "eos": 2},
        MISTRAL: {"unk": 0, "bos": 1, "eos": 2},
        TINY: {"unk": 0, "bos": 1, "eos": 2},
    }
    prints = {name: fingerprint(tokenizer_in(shared / "tokenizers" / name)) for name in NAMES}
    assert prints[LLAMA] == prints[TINY]
    assert len(set(prints.values())) == 4


@pytest.mark.parametrize(
    ("teacher", "student", "same", "without_blank"),
    [(QWEN, GPT2, 27.9, 30.9), (QWEN, TINY, 17.4, 20.9), (TINY, QWEN, 82.6, 84.4), (LLAMA, TINY, 100, 100)],
)
def test_how_far_exact_maps_reach(teacher: str, student: str, same: float, without_blank: float, shared: Path):
    sides = pair(shared, teacher, student)
    found, wider = exact(*sides), exact(*sides, ignore_space=True)
    assert 100 * (found.ids >= 0).mean() == pytest.approx(same, abs=0.1)
    assert 100 * (wider.ids >= 0).mean() == pytest.approx(without_blank, abs=0.1)
    hit = found.ids >= 0
    assert np.array_equal(wider.ids[hit], found.ids[hit])


def test_a_shared_vocabulary_is_the_same_from_both_sides(shared: Path):
    qwen, gpt2 = pair(shared, QWEN, GPT2)
    teachers, students = overlap(qwen, gpt2)
    assert len(teachers) == 42256 + 1
    assert (teachers[-1], students[-1]) == (151643, 50256)
    back = overlap(gpt2, qwen)
    assert {*zip(teachers.tolist(), students.tolist(), strict=True)} == {
        *zip(back[1].tolist(), back[0].tolist(), strict=True)
    }


def test_every_token_of_a_byte_level_teacher_begins_with_one_of_the_student(shared: Path):
    qwen, tiny = pair(shared, QWEN, TINY)
    found = prefix(qwen, tiny)
    assert np.flatnonzero(found.ids < 0).tolist() == [151644, 151645]  # <|im_start|>, <|im_end|>
    draw = random.Random(7)
    for at in draw.sample(range(len(qwen) - 3), 200):
        begins = {len(text): text for text in tiny.content if text and qwen.content[at].startswith(text)}
        assert tiny.content[found.ids[at]] == begins[max(begins)]


@pytest.mark.slow
def test_the_published_map_is_made_again_but_for_ties(shared: Path):
    """MinED's map from Mistral to TinyLlama, published with DSKD and MCW-KD."""
    mistral, tiny = pair(shared, MISTRAL, TINY)
    path = shared / "vocab_maps" / "mistral_to_tinyllama_tea2stu_id.json"
    tokenizers = [tokenizer_in(shared / "tokenizers" / name) for name in (MISTRAL, TINY)]
    published = load(path, *tokenizers).ids
    assert published.tolist() == [*json.loads(path.read_text()).values()]
    found = min_edit(mistral, tiny).ids
    spelling = {token: at for at, token in enumerate(tiny.raw)}
    named = [at for at, token in enumerate(mistral.raw) if token in spelling]
    assert len(named) == 24184
    assert np.array_equal(found[named], published[named])
    assert (found == published).mean() >= 0.999
    for at in np.flatnonzero(found != published):
        if mistral.content[at] == tiny.content[found[at]]:
            assert len(mistral.content[at]) == 1  # a control character, which TinyLlama has as a byte piece
            assert tiny.content[published[at]] != mistral.content[at]
        else:  # as near, but the published one is a special token
            ours, theirs = (distance(mistral.raw[at], tiny.raw[ids[at]]) for ids in (found, published))
            assert ours == theirs
            assert published[at] in tiny.special


@pytest.mark.slow
def test_the_nearest_tokens_are_those_of_a_search_through_all(shared: Path):
    for teacher, student in (pair(shared, MISTRAL, TINY), pair(shared, TINY, GPT2)):
        found, same = min_edit(teacher, student).ids, exact(teacher, student).ids
        left = [at for at in np.flatnonzero(same < 0).tolist() if teacher.content[at]]
        for at in random.Random(3).sample(left, 6):
            if teacher.kind == student.kind:
                text, others = teacher.raw[at], student.raw
            else:
                text = teacher.content[at].decode("utf-8", "surrogateescape")
                others = [content.decode("utf-8", "surrogateescape") for content in student.content]
            near = ((distance(text, other), i) for i, other in enumerate(others) if student.content[i])
            assert found[at] == min(near)[1]
