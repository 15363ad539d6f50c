"""Real tokenizers, real and hard texts: every byte is aligned, no group pairs tokens that share none, ETA is ETA."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from stillhouse.alignment import Coverage, Side, exact, span
from stillhouse.data.dataset import EncodedDataset
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.example import Example, Segment
from stillhouse.data.pieces import Pieces
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.spans import Spans
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from tests.alignment.test_spans import check, eta
from tests.alignment.tokenizers import TEXT, TOKENIZERS
from tests.data.small import CHATML, LLAMA2
from tests.real.test_data import NAMES

ROOMY = Limits(100_000, 50_000)


@cache
def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


@pytest.fixture(params=NAMES)
def tokenizer(request: pytest.FixtureRequest, shared: Path) -> PreTrainedTokenizerBase:
    return tokenizer_in(shared / "tokenizers" / request.param)


def encoded(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, limits: Limits = ROOMY, spans: Spans = "bytes"
) -> EncodedDataset:
    examples = [Example((Segment("Q?\n", False), Segment(text, True)), "t") for text in texts]
    return encode_all(examples, tokenizer, limits, spans=spans)[0]


def targets(item: dict[str, Any]) -> np.ndarray:
    """The tokens that the scored positions predict."""
    return item["input_ids"][1:][item["scored"][:-1]]


def responses(shared: Path, limit: int) -> list[str]:
    return [row.fields["output"] for row in read_rows(shared / "data" / "dolly", limit=limit)]


@pytest.mark.slow
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(texts=st.lists(TEXT, min_size=15, max_size=30))
def test_every_byte_of_hard_texts_is_aligned_with_every_kind_of_tokenizer(shared: Path, texts: list[str]):
    tokenizers = [tokenizer_in(shared / "tokenizers" / name) for name in NAMES] + list(TOKENIZERS.values())
    datasets = [encoded(texts, tokenizer) for tokenizer in tokenizers]
    for ours, theirs in combinations(datasets, 2):
        for index, text in enumerate(texts):
            student, teacher = Side.of(ours[index]), Side.of(theirs[index])
            assert check(span(student, teacher), student, teacher) == len(text.encode()) + 1


def test_tokens_say_the_bytes_that_they_cover(tokenizer: PreTrainedTokenizerBase, shared: Path):
    texts = responses(shared, 200)
    examples = [Example((Segment("Q?\n", False), Segment(text, True)), "t") for text in texts]
    dataset, census = encode_all(examples, tokenizer, ROOMY, spans="bytes")
    assert census.lines()[1:] == []  # none is by characters
    content = Pieces.of(tokenizer).content
    for index, text in enumerate(texts):
        item = dataset[index]
        at = np.flatnonzero(item["scored"]) + 1
        ends, data = item["ends"][at].tolist(), text.encode()
        for number, (token, begin, end) in enumerate(zip(item["input_ids"][at][:-1], [0, *ends], ends, strict=False)):
            said = content[token]
            assert data[begin:end] == (said.removeprefix(b" ") if number == 0 and len(said) > end - begin else said)


@pytest.mark.slow
def test_groups_of_real_responses_are_the_same_text_on_both_sides(shared: Path):
    texts = responses(shared, 60)
    tokenizers = [tokenizer_in(shared / "tokenizers" / name) for name in NAMES]
    known = [(encoded(texts, tokenizer), Pieces.of(tokenizer).content) for tokenizer in tokenizers]
    for (ours, our_content), (theirs, their_content) in combinations(known, 2):
        coverage = Coverage()
        for index, text in enumerate(texts):
            student, teacher = Side.of(ours[index]), Side.of(theirs[index])
            alignment = span(student, teacher)
            assert check(alignment, student, teacher) == len(text.encode()) + 1
            coverage.add(alignment, student, teacher)
            for of_student, of_teacher in alignment.groups():
                said = [
                    b"".join(content[token] for token in targets(dataset[index])[group])
                    for dataset, content, group in (
                        (ours, our_content, of_student),
                        (theirs, their_content, of_teacher),
                    )
                ]
                assert said[0].lstrip(b" ") == said[1].lstrip(b" ")
        assert coverage.bytes == coverage.bytes_aligned
        assert coverage.one_to_one > 0.6 * coverage.rows


@pytest.mark.slow
def test_single_tokens_of_real_responses_are_those_of_eta(shared: Path):
    texts = [" ".join(text.split()) for text in responses(shared, 60)]
    known = []
    for name in NAMES:
        tokenizer = tokenizer_in(shared / "tokenizers" / name)
        dataset, content = encoded(texts, tokenizer, spans="solid"), Pieces.of(tokenizer).content
        words = [
            [*(content[token].replace(b" ", b"") for token in targets(dataset[index])[:-1]), None]
            for index in range(len(texts))
        ]
        known.append(([Side.of(dataset[index]) for index in range(len(texts))], words))
    for (ours, our_words), (theirs, their_words) in combinations(known, 2):
        for index in range(len(texts)):
            both = [  # a token of blanks alone says nothing
                [(at, word) for at, word in enumerate(words[index]) if word != b""]
                for words in (our_words, their_words)
            ]
            pairs = eta(*([word for _, word in side] for side in both))
            expected = [([both[0][i][0]], [both[1][j][0]]) for i, j in pairs]
            assert exact(ours[index], theirs[index]).groups() == expected


@pytest.mark.slow
def test_conversations_share_their_bytes_across_templates(shared: Path):
    rows = [row.fields for row in read_rows(shared / "data" / "dolly", limit=80) if not row.fields["input"]]
    turns = [
        [
            {"role": role, "content": row[key]}
            for row in pair
            for role, key in (("user", "instruction"), ("assistant", "output"))
        ]
        for pair in zip(rows[::2], rows[1::2], strict=False)
    ]
    datasets = []
    for name, template in (("Qwen1.5-1.8B", CHATML), ("llama2-7b-hf", LLAMA2), ("mistral-7b-v0.1", LLAMA2)):
        tokenizer = load_tokenizer(shared / "tokenizers" / name)
        tokenizer.chat_template = template
        examples = [build("chat", tokenizer).examples(Row({"messages": messages}, "t"))[0] for messages in turns]
        datasets.append(encode_all(examples, tokenizer, ROOMY, spans="bytes")[0])
    for ours, theirs in combinations(datasets, 2):
        for index, messages in enumerate(turns):
            student, teacher = Side.of(ours[index]), Side.of(theirs[index])
            size = sum(len(message["content"].encode()) + 1 for message in messages[1::2])
            assert check(span(student, teacher), student, teacher) == size
