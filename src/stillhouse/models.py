"""Causal language models from a folder or the Hub, and the one place that asks a backbone for hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed
from transformers.utils import logging as transformers_logging

from stillhouse.mistakes import Mistake, shorten

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_config(path: str, *, overrides: dict[str, Any] | None = None, trust_remote_code: bool = False) -> Any:
    """The configuration of the model at `path`, with `overrides`.

    Raises:
        Mistake: there is no readable configuration, or an override names no key of it.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        mend = "give a folder with config.json or a Hub name"
        raise Mistake(path, f"no model configuration: {shorten(str(error), 80)}", mend) from error
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            raise Mistake(f"{path}: config.{key}", f"{type(config).__name__} has no such key", "see its config.json")
        setattr(config, key, value)
    return config


def load_causal_lm(
    path: str,
    *,
    dtype: str = "auto",
    from_scratch: bool = False,
    config: dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    seed: int | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Args:
        path: A folder or a Hub name.
        dtype: "auto" keeps the checkpoint's own (float32 from scratch), else a key of `DTYPES`.
        from_scratch: Random weights, drawn with `seed`, in the architecture that `path`'s config.json describes.
        config: Overrides of that configuration; only with `from_scratch`.

    Raises:
        Mistake: no such model, no weights in safetensors, or a weight that the architecture wants and the file lacks.
    """
    settled = load_config(path, overrides=config if from_scratch else None, trust_remote_code=trust_remote_code)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if from_scratch:
        if seed is not None:
            set_seed(seed)
        wanted = DTYPES.get(dtype, torch.float32)
        return AutoModelForCausalLM.from_config(settled, dtype=wanted, **options).eval()
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        mend = "save the model as safetensors, or set from_scratch: true"
        raise Mistake(path, "no *.safetensors in this folder", mend)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES.get(dtype, "auto"), use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise Mistake(path, f"this model does not load: {shorten(str(error), 80)}", "is the folder whole?") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise Mistake(path, f"weights are missing: {missing}", "is this folder of another architecture?")
    return model.eval()


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The part of `model` below its LM head; its last hidden state is exactly what the head is applied to."""
    body = model.base_model
    if body is model:
        raise Mistake(type(model).__name__, "this architecture has no separate backbone", "use another architecture")
    return body


def last_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last hidden state, the input of the LM head, at every position; 0 or anything on padding.

    On a CPU rows of unlike lengths are run in groups, which spares the work on padding and changes nothing else. An
    accelerator gets the whole batch: there a launch costs more than padding, and lengths would have to be waited for.

    Args:
        input_ids: [B, L], padded on the right.
        attention_mask: [B, L], 1 on real tokens.

    Returns:
        [B, L, d]
    """
    body, (_, longest) = backbone(model), input_ids.shape
    lengths = attention_mask.sum(1).tolist() if input_ids.is_cpu else []
    groups = like_lengths(lengths)
    if len(groups) <= 1:
        return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state  # [B, L, d]
    parts = []
    for rows in groups:
        length = max(lengths[row] for row in rows)
        inputs = {"input_ids": input_ids[rows, :length], "attention_mask": attention_mask[rows, :length]}
        hidden = body(**inputs, use_cache=False).last_hidden_state  # [b, length, d]
        parts.append(torch.nn.functional.pad(hidden, (0, 0, 0, longest - length)))  # [b, L, d]
    order = torch.tensor([row for rows in groups for row in rows])
    return torch.cat(parts)[order.argsort()]  # [B, L, d]


def like_lengths(lengths: Sequence[int], cost: int = 256) -> list[list[int]]:
    """Indices of rows in groups of like length, where a further group spares at least `cost` padded positions."""
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def split(start: int, stop: int) -> list[list[int]]:
        spared = [(lengths[rows[start]] - lengths[rows[cut]]) * (stop - cut) for cut in range(start + 1, stop)]
        if not spared or max(spared) < cost:
            return [rows[start:stop]]
        cut = start + 1 + spared.index(max(spared))
        return split(start, cut) + split(cut, stop)

    return split(0, len(rows)) if rows else []


def quiet_loading() -> None:
    """No progress bars nor advice of transformers' own on standard error."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def longest_input(config: Any) -> int | None:
    """How many positions the architecture has room for, or None where it names no limit."""
    text = config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        limit = getattr(text, key, None)
        if isinstance(limit, int):
            return limit
    return None
