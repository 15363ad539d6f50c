"""The weight that an LM head multiplies by when peft has adapted it.

A head under LoRA computes h W^T + sum s (h A^T) B^T, which is h (W + sum s B A)^T: that sum is the head's weight, as a
differentiable expression, so A and B get exact gradients. Adapters are known by what they have (`base_layer`,
`lora_A`), not by their class, so that peft need not be there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillhouse.mistakes import Mistake

MEND = "leave lm_head out of target_modules, or use modules_to_save"


def effective(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [V', d] and bias [V'] or None that `module` computes with, whether or not peft has adapted it.

    A copy that is trained whole (`modules_to_save`) and trainable tokens pass their own weight on as `module.weight`.

    Raises:
        Mistake: an adapter that is no sum of weights, or dropout inside it.
    """
    base = getattr(module, "base_layer", None)
    if base is None:
        return _plain(module)
    if module.merged:
        if module.disable_adapters:
            module.unmerge()  # as the layer's own forward does
        return effective(base)
    if module.disable_adapters:
        return effective(base)
    if not hasattr(module, "lora_A"):
        raise Mistake("lm_head", f"is adapted by {type(module).__name__}, which is not known here", MEND)
    weight, bias = effective(base)
    for name in module.active_adapters:
        if name in module.lora_A:
            weight, bias = _with_lora(module, name, weight, bias)
    return weight, bias


def _plain(module: Any) -> tuple[Tensor, Tensor | None]:
    weight: Tensor = module.weight
    if not weight.is_floating_point():
        raise Mistake("lm_head", f"its weight is quantised ({weight.dtype})", "load the model with an lm_head in bf16")
    return weight, getattr(module, "bias", None)


def _with_lora(module: Any, name: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`weight` [V', d] and `bias` [V'] with the adapter `name` added."""
    variant = getattr(module, "lora_variant", {}).get(name)
    if variant is not None or getattr(module, "use_dora", {}).get(name):
        kind = type(variant).__name__.removesuffix("LinearVariant") if variant is not None else "Dora"
        raise Mistake("lm_head", f"adapter '{name}' on it is {kind}, not plain LoRA", MEND)
    first, second, scaling = module.lora_A[name], module.lora_B[name], module.scaling[name]
    dropout = module.lora_dropout[name]
    if getattr(dropout, "p", 0.0) > 0.0 and (dropout.training or first.weight.requires_grad):
        mend = f"set lora_dropout to 0, {MEND}"
        raise Mistake("lm_head", f"adapter '{name}' on it has dropout, which no weight can express", mend)
    dtype = torch.promote_types(weight.dtype, second.weight.dtype)
    # Under autocast the sum would be rounded to bf16, and with it most of what an adapter adds.
    kind = "cpu" if weight.is_meta else weight.device.type  # without weights there is no autocast to leave either
    with torch.autocast(kind, enabled=False):
        a, b = first.weight.to(dtype), second.weight.to(dtype)  # [r, d], [V', r]
        weight = torch.addmm(weight.to(dtype), b, a, alpha=scaling)
        if second.bias is not None:
            extra = second.bias.to(dtype) * scaling  # [V']
            bias = extra if bias is None else bias.to(dtype) + extra
    return weight, bias
