"""Rows that have ended leave their batch: what the others write stays the same, and nobody computes for the ended."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from stillhouse.rollout import Sampling, respond
from stillhouse.rollout.generate import Response
from tests.rollout.small import VOCABULARY, character_tokenizer, some_prompts, tiny_gpt2, tiny_llama

PROMPTS = some_prompts(12, seed=3)
# A third of all tokens end a response, so that rows of a batch end one after another.
STOP = list(range(1, VOCABULARY, 12))
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.5,
    "sliding_window": 6, "head_dim": 4, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def mistral() -> PreTrainedModel:
    """Its window is shorter than its texts."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES)).eval()


def gemma() -> PreTrainedModel:
    """Layers with a window and layers without; capped logits."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SIZES)).eval()


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
    assert len(set(lengths)) > 3, "else nobody left while others went on"
    for one, other in zip(alone, together, strict=True):
        assert (one.ids, one.finished, one.text) == (other.ids, other.finished, other.text)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
    assert noted[0] == 12
    assert sum(noted) < 0.75 * 12 * max(lengths), "rows that ended went on being computed"
    assert noted == sorted(noted, reverse=True)


def test_a_model_without_keys_and_values_writes_all_the_same() -> None:
    model = mamba()
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
