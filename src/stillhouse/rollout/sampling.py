"""How the next token is drawn from a model's prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stillhouse.mistakes import Mistake


@dataclass(frozen=True)
class Sampling:
    """How a response is written; nothing else, such as a model's own defaults, has a say.

    Attributes:
        max_new_tokens: the longest response, in tokens, its end-of-text token included.
        temperature: divides the logits; 0 takes the likeliest token (greedy), and `top_p` and `top_k` have no part.
        top_p: draws from the smallest set of likeliest tokens whose probability is at least this; 1 keeps all.
        top_k: draws from this many likeliest tokens; 0 keeps all.
        no_repeat_ngram_size: no n-gram of this length occurs twice in prompt and response; 0 allows all.

    Raises:
        Mistake: a value is out of its bounds.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        _require("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        _require("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 (greedy) or above")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("top_k", self.top_k, self.top_k >= 0, "0 (all tokens) or above")
        # Of size 1 it would ban every token of the prompt, and with the padding often the end of the text.
        size = self.no_repeat_ngram_size
        _require("no_repeat_ngram_size", size, size == 0 or size >= 2, "0 (off) or at least 2")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, so that a seed changes nothing."""
        return self.temperature == 0


def _require(key: str, value: float, holds: bool, bounds: str) -> None:
    if not holds:
        raise Mistake(key, f"must be {bounds}, got {value!r}")
