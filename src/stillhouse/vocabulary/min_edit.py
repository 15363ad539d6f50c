"""The nearest token by edit distance, as the mappings are made that were published with DSKD and MCW-KD (MinED)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stillhouse.data.pieces import Pieces
from stillhouse.progress import track
from stillhouse.vocabulary.matching import NONE, Matches, exact

BLANK = " "
TOKENS_A_PIECE = 128


def min_edit(teacher: Pieces, student: Pieces) -> Matches:
    """Tokens for the same bytes, else the student token with the nearest string, the least id among equally near ones.

    The distance is Levenshtein's over characters of the token strings, in which a blank before a word is one character
    however it is written. Tokenizers of one kind are compared as they spell their tokens (so two byte-level ones byte
    by byte), others as text, a byte of a broken character as one character. Special tokens go by their role alone, and
    none of the student's stands for text (in the published mappings Mistral's '<?>' becomes '<s>').

    Wan et al., 2024 (FuseLLM).
    """
    found = exact(teacher, student)
    ids = found.ids.copy()
    left = [at for at in np.flatnonzero(ids == NONE).tolist() if teacher.content[at]]
    spelt = teacher.kind == student.kind
    candidates = [at for at, content in enumerate(student.content) if content]
    if left and candidates:
        ids[left] = _nearest(_strings(teacher, left, spelt), _strings(student, candidates, spelt), candidates)
    counts = {name: found.counts[name] for name in ("exact", "role")}
    counts["edited"] = int((ids >= 0).sum()) - sum(counts.values())
    return Matches(ids, counts | {"none": int((ids == NONE).sum())})


def _strings(pieces: Pieces, ids: list[int], spelt: bool) -> list[str]:
    """The strings that are compared, of these ids; see `min_edit`."""
    if not spelt:
        return [pieces.content[at].decode("utf-8", "surrogateescape") for at in ids]
    if pieces.kind == "wordpiece":  # its marker stands where there is no blank
        return [pieces.raw[at] for at in ids]
    return [pieces.raw[at].replace(pieces.marker, BLANK) if pieces.marker else pieces.raw[at] for at in ids]


def _nearest(texts: list[str], candidates: list[str], ids: list[int]) -> NDArray[np.int32]:
    """For each text the id of the nearest candidate; [len(texts)] int32."""
    from stillhouse.vocabulary import levenshtein  # numba: a second, spared where nothing is compared

    codes = levenshtein.alphabet(texts, candidates)
    patterns = levenshtein.strings(texts, range(len(texts)), codes)
    others = levenshtein.strings(candidates, ids, codes)
    starts = range(0, len(texts), TOKENS_A_PIECE)

    def piece(start: int) -> NDArray[np.int32]:
        return levenshtein.nearest(patterns, start, min(start + TOKENS_A_PIECE, len(texts)), others, len(codes))

    def pieces() -> Iterator[NDArray[np.int32]]:
        with ThreadPoolExecutor(max_workers=_threads(), thread_name_prefix="stillhouse-vocabulary") as pool:
            yield from pool.map(piece, starts)

    out = np.empty(len(texts), dtype=np.int32)
    out[patterns.ids] = np.concatenate([*track(pieces(), "comparing tokens", total=len(starts))])
    return out


def _threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
