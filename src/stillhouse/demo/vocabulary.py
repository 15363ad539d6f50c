"""Vocabularies of two families, trained on the demo's own text, and model folders that its models are born from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stillhouse import store

END, PAD, UNKNOWN = "<|end|>", "<|pad|>", "<|unknown|>"
LONGEST = 128  # tokens of a prompt and its response; the generator's longest rows have about 60


@dataclass(frozen=True)
class Size:
    """The shape of a Llama-architecture model with four attention heads and tied embeddings."""

    hidden: int
    layers: int
    intermediate: int


def train_tokenizer(texts: Iterable[str], entries: int = 700) -> Tokenizer:
    """A byte-level BPE of `entries` tokens, the end and padding tokens among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_unigram(texts: Iterable[str], entries: int = 460) -> Tokenizer:
    """A Unigram vocabulary of at most `entries` tokens, in which a blank begins a word, as SentencePiece writes it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=entries, special_tokens=[END, PAD, UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer goes through its tables in an order of its own in each process: pieces that are as frequent change
    # places, and the last digits of scores differ.
    specials = [(special, 0.0) for special in (END, PAD, UNKNOWN)]
    trained = json.loads(tokenizer.to_str())["model"]["vocab"][len(specials) :]
    scored = sorted(((piece, round(score, 2)) for piece, score in trained), key=lambda one: (-one[1], one[0]))
    tokenizer.model = models.Unigram([*specials, *scored], unk_id=2)
    return tokenizer


def write_model_folder(folder: Path, tokenizer: Tokenizer, size: Size) -> None:
    """Write the tokenizer and a `config.json` without weights: what `student.from_scratch: true` starts from."""
    with store.write_folder(folder) as temporary:
        tokenizer.save(str(temporary / "tokenizer.json"))
        store.write_json(temporary / "tokenizer_config.json", _tokenizer_config())
        store.write_json(temporary / "config.json", _model_config(tokenizer, size))


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": LONGEST,
        "clean_up_tokenization_spaces": False,
    }


def _model_config(tokenizer: Tokenizer, size: Size) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.intermediate,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": LONGEST,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
