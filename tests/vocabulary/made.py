"""Vocabularies made up for tests: a few short tokens, as any kind of tokenizer would spell them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from stillhouse.data.pieces import Kind, Pieces

MARKERS: dict[Kind, str] = {"byte_level": "\u0120", "sentencepiece": "\u2581", "wordpiece": "##", "characters": ""}


def vocabulary(tokens: Sequence[str], special: dict[int, str] | None = None, kind: Kind = "byte_level") -> Pieces:
    """Tokens with real blanks, spelt as `kind` does; "<0x41>" is a byte piece, and ids in `special` are named so."""
    special = special or {}
    raw, content = [], []
    for at, token in enumerate(tokens):
        is_byte = kind == "sentencepiece" and token.startswith("<0x")
        raw.append(token if at in special or is_byte else token.replace(" ", MARKERS[kind]))
        content.append(b"" if at in special else bytes([int(token[3:5], 16)]) if is_byte else token.encode())
    return Pieces(tuple(raw), tuple(content), special, kind, MARKERS[kind], frozenset(), False)


KINDS = st.sampled_from(["byte_level", "sentencepiece"])
TOKENS = st.lists(st.text("ab \u00e9", min_size=1, max_size=4), min_size=1, max_size=12, unique=True)
VOCABULARIES = st.builds(lambda tokens, kind: vocabulary(tokens, kind=kind), TOKENS, KINDS)
