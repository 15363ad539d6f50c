"""Rows that have ended make room for prompts that wait: what is written stays the same, and nothing is for nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from stillhouse.rollout import Sampling, respond
from stillhouse.rollout.generate import Response
from tests.head.test_architectures import ARCHITECTURES, model_of
from tests.rollout.small import VOCABULARY, character_tokenizer, some_prompts, tiny_gpt2, tiny_llama

PROMPTS = some_prompts(12, seed=3)
# A third of all tokens end a response, so that rows of a batch end one after another.
STOP = list(range(1, VOCABULARY, 12))
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.5,
    "head_dim": 4, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def mistral(window: int = 64) -> PreTrainedModel:
    """All of its layers have a window."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**{**SIZES, "sliding_window": window})).eval()


def gemma(window: int = 64) -> PreTrainedModel:
    """Layers with a window and layers without; capped logits."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**{**SIZES, "sliding_window": window})).eval()


def mamba() -> PreTrainedModel:
    """No keys and values: its state has no rows that could be told apart from outside."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4, bos_token_id=0,
                         eos_token_id=0, pad_token_id=0, initializer_range=0.5)  # fmt: skip
    return MambaForCausalLM(config).eval()


def written(model: PreTrainedModel, batch_size: int, **others: Any) -> list[Response]:
    return respond(
        model, character_tokenizer(), PROMPTS, Sampling(24, temperature=0.8), seed=4, batch_size=batch_size, stop=STOP,
        **others,
    )  # fmt: skip


def rows_computed(model: PreTrainedModel) -> list[int]:
    """How many rows every pass through the model has, noted as it goes."""
    noted: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: noted.append(len(given["input_ids"])), with_kwargs=True)
    return noted


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, mistral, gemma])
def test_what_stays_writes_as_it_would_alone(make: Any) -> None:
    model = make()
    alone, noted = written(model, 1), rows_computed(model)
    together = written(model, 12)
    lengths = [len(said.ids) for said in together]
    assert len(set(lengths)) > 2, "else nobody left while others went on"
    for one, other in zip(alone, together, strict=True):
        assert (one.ids, one.finished, one.text) == (other.ids, other.finished, other.text)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
    assert noted[0] == 12
    assert sum(noted) == sum(lengths) < 12 * max(lengths), "rows that ended went on being computed"
    assert noted == sorted(noted, reverse=True)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, gemma])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_those_who_come_in_write_as_they_would_alone(make: Any, batch_size: int) -> None:
    model = make()
    alone, noted = written(model, 1), rows_computed(model)
    together = written(model, batch_size)
    for one, other in zip(alone, together, strict=True):
        assert (one.ids, one.finished, one.text) == (other.ids, other.finished, other.text)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
    assert max(noted) == batch_size
    tokens = sum(len(said.ids) for said in together)
    # A batch of two is full nearly always; the last responses are alone, whatever one does.
    assert len(noted) < (0.75 if batch_size == 2 else 0.6) * tokens


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_writes_what_transformers_alone_writes(kind: str) -> None:
    model = model_of(kind)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    tokens = model.config.get_text_config().vocab_size
    prompts = [[token % (tokens - 1) + 1 for token in prompt] for prompt in PROMPTS[:7]]
    stop = list(range(1, tokens, 9))
    said = respond(
        model, character_tokenizer(), prompts, Sampling(12, temperature=0.0), seed=1, batch_size=3, stop=stop
    )
    for prompt, one in zip(prompts, said, strict=True):
        config = GenerationConfig(do_sample=False, max_new_tokens=12, eos_token_id=[0, *stop], pad_token_id=0)
        alone: Any = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), generation_config=config
        )
        assert list(one.ids) == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize("make", [lambda: mistral(6), lambda: gemma(6), mamba], ids=["mistral", "gemma", "mamba"])
def test_a_memory_that_cannot_be_divided_is_left_whole(make: Any) -> None:
    """A window shorter than the texts; a state without keys and values."""
    model = make()
    assert [said.ids for said in written(model, 1)] == [said.ids for said in written(model, 12)]


def test_a_second_model_reads_along_to_the_end() -> None:
    student, teacher = tiny_llama(), tiny_gpt2(seed=5)
    alone, together = (written(student, size, beside=teacher, share=0.4) for size in (1, 12))
    assert [said.ids for said in alone] == [said.ids for said in together]
    for one, other in zip(alone, together, strict=True):
        assert one.importance == pytest.approx(other.importance, abs=1e-4)


def test_ngrams_of_what_was_written_before_others_left_are_barred_still() -> None:
    said = respond(
        tiny_gpt2(), character_tokenizer(), PROMPTS, Sampling(40, temperature=0.0, no_repeat_ngram_size=2), seed=4,
        batch_size=12, stop=STOP[::4],
    )  # fmt: skip
    assert len({len(one.ids) for one in said}) > 3
    for prompt, one in zip(PROMPTS, said, strict=True):
        text = [*prompt, *one.ids]
        pairs = list(zip(text[len(prompt) - 1 :], text[len(prompt) :], strict=False))
        assert len(pairs) == len(set(pairs))


def test_who_has_ended_at_the_models_last_position_waits_there() -> None:
    """Of 24 rows three must end before a stretch is over; by then the first would stand behind the last position."""
    model, tokenizer = tiny_gpt2(n_positions=20), character_tokenizer()
    prompts = some_prompts(24, seed=8, shortest=2, longest=17)
    together, alone = (
        respond(model, tokenizer, prompts, Sampling(40, temperature=0.0), seed=1, batch_size=size) for size in (24, 1)
    )
    assert [said.ids for said in together] == [said.ids for said in alone]
    assert max(len(prompt) + len(said.ids) for prompt, said in zip(prompts, together, strict=True)) == 20


def test_padding_bars_no_ngram() -> None:
    """A prompt that ends in the token which also pads, and a model that would say it again."""
    prompts = [[5, 9, 0], [7] * 9]
    sampling = Sampling(6, temperature=0.0, no_repeat_ngram_size=2)
    model = tiny_gpt2()

    def again(_: Any, __: Any, found: Any) -> None:
        found.logits[..., 0] += 100.0

    model.register_forward_hook(again)
    for size in (2, 1):
        said = respond(model, character_tokenizer(), prompts, sampling, seed=1, batch_size=size)
        assert said[0].ids == [0], size
