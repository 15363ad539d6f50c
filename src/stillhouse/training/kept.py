"""Two tokenisations and their alignment, kept on disk, so that the next run with the same data only reads them.

The key is a hash of everything that they depend on: the rows, both tokenizers and their templates, the limits, the
aligner and, where it goes by one, the map. What is kept is verified when it is read, and made again where it does not
verify.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stillhouse import store
from stillhouse.data.dataset import EncodedDataset
from stillhouse.data.pieces import fingerprint
from stillhouse.mistakes import Mistake
from stillhouse.paired import Alignments, PairedDataset
from stillhouse.training.log import logger
from stillhouse.vocabulary import cache_folder

# Goes into the key: raise it whenever encodings, spans or an aligner come out otherwise than before.
VERSION = 1
_SIDES = ("input_ids", "scored", "offsets", "samples", "ends")


def key_of(tokenizers: tuple[PreTrainedTokenizerBase, ...], *parts: Any) -> str:
    """The hash of what `parts` and both tokenizers are, templates and special tokens included."""
    known = [VERSION, *parts]
    for tokenizer in tokenizers:
        known += [fingerprint(tokenizer), tokenizer.chat_template, tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=_plain).encode()).hexdigest()[:32]


def kept_or_made(key: str, make: Callable[[], PairedDataset]) -> PairedDataset:
    """What is kept under `key`, else what `make` gives, which is kept from now on."""
    path = cache_folder().parent / "encoded" / f"{key}.npz"
    try:
        found = _read(store.read_bytes(path, require_hash=True))
        logger.info(f"both tokenisations are read from {path}")
        return found
    except store.Absent:
        pass
    except Mistake as mistake:
        logger.info(f"{mistake}; it is made again")
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_bytes(path, _bytes(made))
    except (Mistake, OSError) as problem:
        logger.info(f"{problem}; the encodings are not kept for the next run")
    return made


def _bytes(dataset: PairedDataset) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}
    for name, side in (("student", dataset), ("teacher", dataset.teacher)):
        arrays |= {f"{name}.{part}": getattr(side, part) for part in _SIDES if getattr(side, part) is not None}
    if dataset.alignments is not None:
        for at, (part, offsets) in enumerate(zip(dataset.alignments.parts, dataset.alignments.offsets, strict=True)):
            arrays |= {f"part.{at}": part, f"offsets.{at}": offsets}
    words = json.dumps({"origins": dataset.origins, "said": dataset.said})
    arrays["words"] = np.frombuffer(words.encode(), dtype=np.uint8)
    written = io.BytesIO()
    np.savez(written, **arrays)  # pyright: ignore[reportArgumentType]
    return written.getvalue()


def _read(data: bytes) -> PairedDataset:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        words = json.loads(stored["words"].tobytes())
        student, teacher = (_side(stored, name, words["origins"]) for name in ("student", "teacher"))
        alignments = None
        if "part.0" in stored:
            parts, offsets = (tuple(stored[f"{kind}.{at}"] for at in range(4)) for kind in ("part", "offsets"))
            alignments = Alignments(parts, offsets)
        return PairedDataset(student, teacher, alignments, words["said"])


def _side(stored: Any, name: str, origins: list[str]) -> EncodedDataset:
    ids, scored, offsets, samples = (stored[f"{name}.{part}"] for part in _SIDES[:4])
    return EncodedDataset(ids, scored, offsets, samples, origins, stored.get(f"{name}.ends"))


def _plain(value: Any) -> Any:
    """What JSON lacks: arrays by their hash, anything else by what it prints."""
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return str(value)
