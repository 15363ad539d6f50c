"""Continuous batching writes what batches write: the same streams, row by row."""

from __future__ import annotations

import logging
import random

import pytest
import torch

from stillhouse.mistakes import Mistake
from stillhouse.rollout import Sampling, respond
from stillhouse.rollout.continuous import Continuous
from tests.rollout.small import character_tokenizer, same, some_prompts, tiny_gpt2, tiny_llama

MANNERS = [
    Sampling(12, temperature=0),
    Sampling(12, temperature=0.8, top_p=0.9),
    Sampling(12, top_k=9),
    Sampling(40, temperature=0, no_repeat_ngram_size=2),
]


@pytest.mark.parametrize(("make", "sampling"), [*((tiny_llama, manner) for manner in MANNERS), (tiny_gpt2, MANNERS[1])])
def test_it_writes_what_batches_write(make, sampling):
    """Prompts of all lengths, some with little room, a vocabulary wider than the tokenizer's, several ends."""
    model, tokenizer = make(vocab_size=400), character_tokenizer()
    prompts = [*some_prompts(9), *some_prompts(4, shortest=54, longest=64)]
    told = {"seed": 3, "stop": [7, 80, 81, 82, 83, 84]}
    expected = respond(model, tokenizer, prompts, sampling, batch_size=5, **told)
    assert {one.finished for one in expected} == {True, False}
    same(respond(Continuous(model, 5), tokenizer, prompts, sampling, **told), expected)


def test_neither_size_nor_order_matters():
    model, tokenizer, prompts = tiny_llama(), character_tokenizer(), some_prompts(9)
    seeds = [(5, place) for place in range(9)]
    expected = respond(Continuous(model, 9), tokenizer, prompts, Sampling(12), seed=seeds)
    order = random.Random(1).sample(range(9), 9)
    found = respond(
        Continuous(model, 2), tokenizer, [prompts[i] for i in order], Sampling(12), seed=[seeds[i] for i in order]
    )
    same(found, [expected[i] for i in order])


def test_a_long_prompt_is_read_in_parts(monkeypatch):
    monkeypatch.setattr("stillhouse.rollout.continuous.FED", 16)
    model, tokenizer = tiny_llama(), character_tokenizer()
    prompts = some_prompts(3, shortest=40, longest=50)
    expected = respond(model, tokenizer, prompts, Sampling(9), seed=1)
    same(respond(Continuous(model, 3), tokenizer, prompts, Sampling(9), seed=1), expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_model_and_the_random_state_are_left_as_they_were(attention, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.WARNING)
    model = tiny_gpt2(resid_pdrop=0.5).train()
    model.set_attn_implementation(attention)
    model.transformer.h[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    defaults, state = model.generation_config, torch.get_rng_state()
    respond(Continuous(model, 2), character_tokenizer(), some_prompts(3), Sampling(4), seed=1)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config._attn_implementation == attention and model.generation_config is defaults
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(model, "_cached_continuous_batching_manager")
    assert caplog.messages == []


def test_what_cannot_be_batched_so_is_said(caplog):
    model = tiny_gpt2()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(
        Mistake, match=r"engine: continuous: GPT2LMHeadModel cannot be batched so: .*write engine: batches"
    ):
        respond(Continuous(model, 2), character_tokenizer(), [[1]], Sampling(4), seed=1)
    model = tiny_gpt2()
    model.transformer.h[0].mlp.register_forward_hook(fail)
    with pytest.raises(Mistake, match="cannot be batched so: no such layer"):
        respond(Continuous(model, 2), character_tokenizer(), [[1]], Sampling(4), seed=1)
    assert caplog.messages == []


def fail(*_: object) -> None:
    raise RuntimeError("no such layer")
