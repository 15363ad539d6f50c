"""Tokenizers: loading them, what they put in front of a text, and whether two of them are the same."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stillhouse.data.rows import may_be_hub_name, missing
from stillhouse.mistakes import Mistake, shorten
from stillhouse.model_folders import base_of, find

# Any of these makes a folder a tokenizer's.
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")

# Where tokenizers differ though their vocabularies agree: merges, spaces, digits, newlines, accents, byte fall-back.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces\n\n\tand a tab  ",
    "1234567890 3.14159 10^-7",
    "na\u00efve caf\u00e9 cafe\u0301 \u4f60\u597d \u0433\u043b\u0430\u0441\u043d\u043e\u0441\u0442\u044c \U0001f642",
    "def f(x: int) -> str:\n    return f'{x!r}'",
    "### Response:\n",
)


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or the Hub, padding to the right, by its end-of-text token if it has no other.

    Of a run's folder it is the best checkpoint's; of an adapter without one, its base's.

    No token is ever added: the model's embeddings stay as they are.

    Raises:
        Mistake: no such folder, no tokenizer in it, none that gives offsets, or none with an end-of-text token.
    """
    where = path = find(str(path))
    base = base_of(where)
    if base is not None and not any((Path(where) / name).is_file() for name in FILES):
        where = path = base  # an adapter that was saved without a tokenizer answers in its base's
    _check_folder(Path(path), where)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        wrong = f"no tokenizer loads from here: {shorten(str(error), 60)}"
        raise Mistake(where, wrong, "give a folder with tokenizer.json") from error
    if not tokenizer.is_fast:
        raise Mistake(where, f"{type(tokenizer).__name__} gives no offsets", "convert it to a fast tokenizer.json")
    end_id(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to pad with: the tokenizer's own, else its end-of-text token."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else end_id(tokenizer)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end-of-text token.

    Raises:
        Mistake: there is none.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        where = str(tokenizer.name_or_path)
        raise Mistake(where, "this tokenizer has no end-of-text token", "set eos_token in its tokenizer_config.json")
    return end


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of every text by itself: Llama's <s>, nothing for GPT-2."""
    bare = ids_of(tokenizer, "a")
    dressed = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(dressed) - len(bare) + 1):
        if dressed[start : start + len(bare)] == bare:
            return dressed[:start]
    return []


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`text` as token ids, with nothing put around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def same_vocabulary(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> str | None:
    """None if both tokenizers give the same ids for the same text; else why not, in a few words.

    Compares every token's id, what stands at the beginning of a text, and the ids of a few texts. Not asked here: how
    many rows a *model's* vocabulary is padded to, and which token ends a text (a base model and its chat version share
    their ids but often not that).
    """
    tokens_a, tokens_b = a.get_vocab(), b.get_vocab()
    if tokens_a != tokens_b:
        return _first_difference(tokens_a, tokens_b)
    if leading_ids(a) != leading_ids(b):
        return f"a text begins with {a.decode(leading_ids(a))!r} here and {b.decode(leading_ids(b))!r} there"
    for text in PROBES:
        if ids_of(a, text) != ids_of(b, text):
            return f"{shorten(repr(text), 40)} is split differently"
    return None


def _first_difference(tokens_a: dict[str, int], tokens_b: dict[str, int]) -> str:
    if len(tokens_a) != len(tokens_b):
        return f"{len(tokens_a)} tokens here and {len(tokens_b)} there"
    names_a, names_b = ({index: name for name, index in tokens.items()} for tokens in (tokens_a, tokens_b))
    index = min(index for index in names_a.keys() | names_b.keys() if names_a.get(index) != names_b.get(index))
    return f"token {index} is {names_a.get(index)!r} here and {names_b.get(index)!r} there"


def _check_folder(path: Path, where: str) -> None:
    if path.is_dir():
        if not any((path / name).is_file() for name in FILES):
            raise Mistake(where, "no tokenizer files in this folder", f"it needs {FILES[0]}, {FILES[1]} or {FILES[2]}")
    elif path.exists():
        raise Mistake(where, "is a file", "give the folder that holds the tokenizer")
    elif len(path.parts) > 1 and not may_be_hub_name(where):  # "gpt2" may be; for a file of rows one word may not
        raise missing(path)
