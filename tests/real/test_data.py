"""Real tokenizers on real rows: what is learnt is the response, markers survive every cut, counts add up."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from stillhouse.data.encode import Limits, encode, encode_all, encode_prompt
from stillhouse.data.example import Example
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer, same_vocabulary
from tests.data.small import CHATML, FORGETFUL, LLAMA2

NAMES = ["gpt2-base", "Qwen1.5-1.8B", "llama2-7b-hf", "mistral-7b-v0.1", "tinyllama-1.1b-3T"]
FRONT = {"gpt2-base": [], "Qwen1.5-1.8B": [], "llama2-7b-hf": [1], "mistral-7b-v0.1": [1], "tinyllama-1.1b-3T": [1]}
LIMITS = Limits(128, 64)


@cache
def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(name: str, shared: Path) -> PreTrainedTokenizerBase:
    return tokenizer_in(shared / "tokenizers" / name)


def learnt(ids: np.ndarray, scored: np.ndarray) -> list[int]:
    return ids[1:][scored[:-1]].tolist()


def dolly(shared: Path, limit: int) -> list[Row]:
    return read_rows(shared / "data" / "dolly", limit=limit)


def test_every_row_keeps_its_response_its_marker_and_its_place_in_the_counts(
    name: str, tokenizer: PreTrainedTokenizerBase, shared: Path
):
    template = build("alpaca", tokenizer)
    examples = [example for row in dolly(shared, 300) for example in template.examples(row)]
    dataset, census = encode_all(examples, tokenizer, LIMITS)
    end = tokenizer.eos_token_id
    prompts_cut = responses_cut = 0
    for index, example in enumerate(examples):
        item = dataset[index]
        ids, scored = item["input_ids"], item["scored"]
        whole = tokenizer(example.segments[1].text, add_special_tokens=False)["input_ids"]
        targets = learnt(ids, scored)
        lead = ids[: len(ids) - len(targets)].tolist()
        assert lead == encode_prompt(example.segments[0], tokenizer, LIMITS)
        assert lead[: len(FRONT[name])] == FRONT[name]
        assert tokenizer.decode(lead, skip_special_tokens=True).endswith("\n\n### Response:\n")
        if targets[-1] == end:
            text = tokenizer.decode(targets[:-1]).removeprefix(" ")
            assert text == example.segments[1].text.removeprefix(" ")
        else:
            assert len(ids) == LIMITS.max_length
            assert targets == whole[: len(targets)]
            responses_cut += 1
        uncut = encode_prompt(example.segments[0], tokenizer, Limits(100_000, 50_000))
        assert lead == uncut or len(lead) == LIMITS.max_prompt_length < len(uncut)
        prompts_cut += lead != uncut
    assert 20 < prompts_cut < 300
    assert 20 < responses_cut < 300
    assert (census.rows, census.examples, census.dropped) == (300, 300, [])
    assert (census.prompts_cut, census.responses_cut) == (prompts_cut, responses_cut)
    assert census.tokens == len(dataset.input_ids)
    assert census.scored_tokens == dataset.scored.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chat_template"),
    [
        ("Qwen1.5-1.8B", None),
        ("gpt2-base", CHATML.replace("<|im_start|>", "<|").replace("<|im_end|>", "<|endoftext|>")),
        ("llama2-7b-hf", LLAMA2),
        ("mistral-7b-v0.1", LLAMA2),
        ("Qwen1.5-1.8B", FORGETFUL),
    ],
)
def test_conversations_learn_every_assistant_turn(name: str, chat_template: str | None, shared: Path):
    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    template = build("chat", tokenizer)
    rows = [row for row in dolly(shared, 60) if not row.fields["input"]]
    for first, second in zip(rows[::2], rows[1::2], strict=False):
        messages = [
            {"role": role, "content": row.fields[key].strip()}
            for row in (first, second)
            for role, key in (("user", "instruction"), ("assistant", "output"))
        ]
        (chat,) = template.examples(Row({"messages": messages}, first.origin))
        encoding = encode(chat, tokenizer, Limits(100_000, 50_000))
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
        assert "".join(segment.text for segment in chat.segments) == rendered
        assert encoding.input_ids.tolist() == tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert said(tokenizer, chat, encoding.input_ids, encoding.scored) == [
            segment.text.strip() for segment in chat.segments if segment.scored
        ]


def said(tokenizer: PreTrainedTokenizerBase, chat: Example, ids: np.ndarray, scored: np.ndarray) -> list[str]:
    """The runs of learnt tokens, decoded: one a turn."""
    borders = np.flatnonzero(np.diff(np.concatenate([[False], scored, [False]]).astype(int)))
    runs = [ids[start + 1 : stop + 1].tolist() for start, stop in borders.reshape(-1, 2)]
    return [str(tokenizer.decode(run)).strip() for run in runs]


@pytest.mark.slow
def test_each_is_the_same_as_itself_alone(shared: Path):
    tokenizers = {name: tokenizer_in(shared / "tokenizers" / name) for name in NAMES}
    same = {(a, b) for a in NAMES for b in NAMES if a < b and same_vocabulary(tokenizers[a], tokenizers[b]) is None}
    assert same == {("llama2-7b-hf", "tinyllama-1.1b-3T")}
    assert all(same_vocabulary(tokenizer, tokenizer) is None for tokenizer in tokenizers.values())
    assert same_vocabulary(tokenizers["llama2-7b-hf"], tokenizers["mistral-7b-v0.1"]) is not None
