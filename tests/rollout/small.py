"""A tokenizer of single characters, lossless both ways, and models with random weights that write varied text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stillhouse.rollout import Response

END = "<|end|>"
VOCABULARY = 257
WORDS = ("a", "b", " ", END)


def character_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """Id 0 ends a text and, unless `pad_token` says otherwise, pads; every other id is one character."""
    characters = [*string.printable, *(chr(0x4E00 + number) for number in range(VOCABULARY - 1 - 100))]
    inner = Tokenizer(models.BPE({token: number for number, token in enumerate([END, *characters])}, []))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, **{"pad_token": END, **special})


def tiny_gpt2(seed: int = 0, **config: Any) -> PreTrainedModel:
    """GPT-2 with learned positions; weights wide enough for no near ties."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **config}
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.5, bos_token_id=0, eos_token_id=0, **sizes)).eval()


def tiny_llama(seed: int = 0, **config: Any) -> PreTrainedModel:
    """Llama with rotary positions, grouped key heads and an untied head."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, **config,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(initializer_range=0.5, bos_token_id=0, eos_token_id=0, **sizes)).eval()


def some_prompts(count: int, seed: int = 0, shortest: int = 1, longest: int = 9) -> list[list[int]]:
    """Prompts of random characters, of random lengths."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=random).tolist()
    return [torch.randint(1, VOCABULARY, (length,), generator=random).tolist() for length in lengths]


def same(found: list[Response], expected: list[Response]) -> None:
    """The same responses, their notes but for rounding."""
    assert [one.ids for one in found] == [one.ids for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.finished, one.clipped) == (other.text, other.finished, other.clipped)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        assert one.importance == pytest.approx(other.importance, abs=1e-5)


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """With ChatML, whose end of a turn is another token than the end of a text."""
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def save_model(
    folder: Path, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None, writes: Sequence[str] = WORDS
) -> Path:
    """A folder with a tokenizer and a model that writes `writes` only; prompts of up to 256 tokens fit."""
    tokenizer = tokenizer or character_tokenizer()
    model = tiny_gpt2(seed, n_positions=256, tie_word_embeddings=False, vocab_size=len(tokenizer))
    parts = dict(model.named_parameters())
    with torch.no_grad():
        parts["transformer.ln_f.bias"][0] = 10
        parts["lm_head.weight"][:, 0] = -1
        parts["lm_head.weight"][tokenizer.convert_tokens_to_ids(list(writes)), 0] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
