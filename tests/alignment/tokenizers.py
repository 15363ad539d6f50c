"""One small tokenizer of every kind, trained here in a moment, and texts that are hard on them."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.data.small import CORPUS, byte_level, metaspace

WORDS = [*CORPUS, "naïve café, glasnost; 你好 world! 10 + 2 = 12", "a  b   c\n\n\td\r\ne"]

HARD = [
    "你好，世界", "مرحبا بالعالم", "\u202eabc\u202c", "👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈",
    "e\u0301", "Z\u0351\u036b\u0343", "ﬁ", "①", "Ⅷ", "İ", "ß", "\r\n", "\n\n", "\t", " ", "   ", "\u00a0",
    "\u3000", "\x00", "\x7f", "\ufeff", "▁", "Ġ", "##", "<0x0A>", "</s>", "<|endoftext|>", "<|im_end|>",
    "<unk>", "[UNK]", "The capital", " of", "Paris", ".", "'s", "12", "x_y", "\U0010ffff",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(HARD) | st.text(max_size=4), max_size=12).map("".join)


def _special(names: list[str]) -> dict[str, str]:
    return dict(zip(("unk_token", "eos_token"), names, strict=True))


@cache
def unigram(*, byte_fallback: bool) -> PreTrainedTokenizerFast:
    """Unigram behind a Metaspace, with or without a token for every byte."""
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(WORDS, trainer)
    if byte_fallback:
        vocabulary = [(piece, _score(tokenizer, piece)) for piece in _by_id(tokenizer)]
        vocabulary += [(f"<0x{value:02X}>", -20.0) for value in range(256)]
        tokenizer.model = models.Unigram(vocabulary, unk_id=0, byte_fallback=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_special(["<unk>", "</s>"]))


def _by_id(tokenizer: Tokenizer) -> list[str]:
    return [str(tokenizer.id_to_token(index)) for index in range(tokenizer.get_vocab_size())]


def _score(tokenizer: Tokenizer, piece: str) -> float:
    """A score that likes long pieces; which one it is does not matter here."""
    return -10.0 / len(piece) if tokenizer.token_to_id(piece) else 0.0


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """WordPiece as BERT's: lower case, no accents, and blanks are dropped."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_special(["[UNK]", "[SEP]"]))


@cache
def nfkc() -> PreTrainedTokenizerFast:
    """Byte-level BPE behind NFKC and a blank in front."""
    tokenizer = Tokenizer.from_str(byte_level().backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {
    "byte level": byte_level(),
    "byte level, NFKC": nfkc(),
    "BPE, no bytes": metaspace(),
    "unigram": unigram(byte_fallback=False),
    "unigram, bytes": unigram(byte_fallback=True),
    "wordpiece": wordpiece(),
}
# Every token stands for exactly the bytes that it covers, whatever the text.
EXACT = ("byte level", "unigram, bytes")
