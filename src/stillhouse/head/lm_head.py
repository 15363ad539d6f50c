"""An LM head as data: what turns a last hidden state into logits, whatever the architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stillhouse.head.adapters import effective
from stillhouse.mistakes import Mistake

# Configuration keys by which architectures scale their logits: Granite and MiniCPM divide, Cohere and Falcon-H1
# multiply.
DIVISORS = ("logits_scaling",)
FACTORS = ("logit_scale", "lm_head_multiplier")

HiddenOf = Callable[[PreTrainedModel, Tensor, Tensor], Tensor]


class Finish(NamedTuple):
    """What a head does to its matrix product: softcap(scale * product), element by element."""

    scale: float = 1.0
    softcap: float | None = None

    def forward(self, products: Tensor) -> Tensor:
        """Scale and soft-cap the matrix product, in fp32 (fp64 stays): [n, V] -> logits [n, V]."""
        logits = products if products.dtype == torch.float64 else products.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def backward_(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Turn a gradient by `logits` into one by the matrix product, in place: [n, V]."""
        if self.softcap is not None:
            gradient.mul_(1.0 - (logits / self.softcap).square_())
        if self.scale != 1.0:
            gradient.mul_(self.scale)
        return gradient


@dataclass(frozen=True)
class Head:
    """logits = softcap(scale * (hidden @ weight.T + bias)), over the real tokens of a vocabulary.

    Attributes:
        weight: [V', d]; its rows may outnumber the real tokens (a padded vocabulary).
        bias: [V'] or None.
        scale: factor of Granite's and Cohere's logits.
        softcap: c of Gemma's c * tanh(logits / c), or None.
        vocabulary: V, the number of real tokens; rows of `weight` beyond it are never predicted.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocabulary: int = 0

    def __post_init__(self) -> None:
        rows = self.weight.shape[0]
        if not self.vocabulary:
            object.__setattr__(self, "vocabulary", rows)
        if not 0 < self.vocabulary <= rows:
            raise ValueError(f"a head of {rows} rows cannot predict {self.vocabulary} tokens")

    @classmethod
    def of(cls, model: torch.nn.Module, vocabulary: int | None = None) -> Head:
        """The head of any Hugging Face causal LM, cut to `vocabulary` real tokens (default: all its rows).

        `model` may be wrapped by peft. Where peft adapts the head, weight and bias are the effective ones, an
        expression that is differentiable by the adapter's parameters: ask for the head anew at every step.

        Raises:
            Mistake: the model has no output embeddings, or an adapter on them that no weight can express.
        """
        causal: Any = model
        module = causal.get_output_embeddings()
        if module is None:
            raise Mistake(type(model).__name__, "has no LM head", "use a causal language model")
        config = causal.config.get_text_config()
        scale = 1.0
        for key in DIVISORS:
            scale /= getattr(config, key, None) or 1.0
        for key in FACTORS:
            scale *= getattr(config, key, None) or 1.0
        weight, bias = effective(module)
        return cls(
            weight=weight,
            bias=bias,
            scale=float(scale),
            softcap=getattr(config, "final_logit_softcapping", None),
            vocabulary=min(vocabulary or weight.shape[0], weight.shape[0]),
        )

    def linear(self, hidden: Tensor) -> Tensor:
        """The matrix product alone: [N, d] -> [N, V], in the dtype of `hidden`."""
        weight = self.weight[: self.vocabulary].to(hidden.dtype)
        bias = None if self.bias is None else self.bias[: self.vocabulary].to(hidden.dtype)
        return torch.nn.functional.linear(hidden, weight, bias)  # [N, V]

    def detach(self) -> Head:
        """The same head with no gradient to it."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, weight=self.weight.detach(), bias=bias)

    @property
    def finishing(self) -> Finish:
        """What comes after the matrix product."""
        return Finish(self.scale, self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits at once, [N, d] -> [N, V] fp32: for tests and the inspector; training never calls it."""
        return self.finishing.forward(self.linear(hidden))


@torch.no_grad()
def probe(model: PreTrainedModel, hidden_of: HiddenOf, tokens: int = 6) -> None:
    """Check on a few tokens that `Head.of(model)` gives the model's own logits.

    Args:
        hidden_of: `models.last_hidden`, or what gives [B, L, d] for (model, input_ids, attention_mask).

    Raises:
        Mistake: the head of this architecture does something that `Head` does not know.
    """
    head = Head.of(model)
    training = model.training
    model.eval()
    ids = torch.arange(tokens, device=head.weight.device)[None] % head.vocabulary  # [1, L]
    mask = torch.ones_like(ids)
    own = model(input_ids=ids, attention_mask=mask).logits[0].float()  # [L, V]
    ours = head.logits(hidden_of(model, ids, mask)[0])  # [L, V]
    model.train(training)
    spread = own.std().clamp_min(1e-6)
    worst = ((own - ours).abs().max() / spread).item()
    if not worst < (1e-3 if head.weight.dtype == torch.float32 else 0.1):
        raise Mistake(
            type(model).__name__,
            f"its logits are not its head applied to its last hidden state (off by {worst:.2g} standard deviations)",
            "please report this architecture",
        )
