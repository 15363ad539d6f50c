"""Small real tokenizers of the kinds that `small` has not: Unigram as SentencePiece writes it, and BERT's WordPiece."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.data.small import CORPUS


@cache
def _unigram() -> str:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def unigram(*, byte_fallback: bool) -> PreTrainedTokenizerFast:
    """A Unigram tokenizer that knows the characters of the corpus, and any other byte by byte or not at all."""
    parts = json.loads(_unigram())
    if byte_fallback:
        parts["model"]["byte_fallback"] = True
        parts["model"]["vocab"] += [[f"<0x{value:02X}>", -20.0] for value in range(256)]
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


@cache
def _wordpiece() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[PAD]", "[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def wordpiece() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that lowers letters and drops accents."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_wordpiece()), eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    )


def characters() -> PreTrainedTokenizerFast:
    """One token a character of the alphabet below, without any marker."""
    vocabulary = {character: index for index, character in enumerate("abcdefghijklmnopqrstuvwxyz \n")}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "<end>": len(vocabulary)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
