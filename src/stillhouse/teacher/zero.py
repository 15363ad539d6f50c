"""A teacher in DeepSpeed's ZeRO-3 shards: every weight is cut, the head's too, and gathered for the layer that runs.

deepspeed itself is imported where it is needed: few runs have it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.mistakes import Mistake
from stillhouse.models import backbone

_ENGINES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: None}


def shard_by_zero(model: PreTrainedModel, device: torch.device) -> None:
    """Cut all weights of a frozen `model` over all processes, each of which must run it equally often.

    The engine is the backbone's, which is what runs; the head is read, inside `gathered`.

    Args:
        model: whole, on any device; afterwards its parts are on `device`.

    Raises:
        Mistake: weights of several dtypes, or DeepSpeed works on another kind of device than training does.
    """
    deepspeed: Any = import_module("deepspeed")
    theirs = deepspeed.accelerator.get_accelerator().device_name()
    if theirs != device.type:
        wrong = f"DeepSpeed works on {theirs} here, and training on {device.type}"
        raise Mistake("teacher.shard", wrong, f"set DS_ACCELERATOR={device.type} in the environment, or write fsdp")
    config, body, head = _config(model), backbone(model), model.get_output_embeddings()
    engine = deepspeed.initialize(model=body, config=config)[0]  # no optimizer: hooks that gather, and no more
    if head is not None:
        deepspeed.zero.Init(module=head, config_dict_or_path=config, dtype=head.weight.dtype)  # tied: is cut already
    model.__dict__["cut_by"] = engine  # the hooks end with it; set past `nn.Module`, lest it become a submodule


def _config(model: PreTrainedModel) -> dict[str, Any]:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1 or not dtypes <= _ENGINES.keys():
        listed = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise Mistake(
            "teacher.shard", f"zero3 takes weights of one dtype, these are {listed}", "set teacher.dtype, or write fsdp"
        )
    kind, width = _ENGINES[dtypes.pop()], model.config.get_text_config().hidden_size
    return {
        "train_micro_batch_size_per_gpu": 1,  # must be there, and means nothing without an optimizer
        "zero_optimization": {
            "stage": 3,
            # As transformers sets them for "auto": biases and norms stay whole, about a layer is fetched ahead.
            "stage3_param_persistence_threshold": 10 * width,
            "stage3_prefetch_bucket_size": int(0.9 * width * width),
        },
        **({} if kind is None else {kind: {"enabled": True}}),
    }


@contextmanager
def gathered(module: nn.Module | None) -> Iterator[None]:
    """Have the module's own weights whole, if ZeRO-3 cut them; what is detached from them inside stays so."""
    cut = [] if module is None else [weight for weight in module.parameters() if hasattr(weight, "ds_id")]
    if not cut:
        yield
        return
    deepspeed: Any = import_module("deepspeed")
    with deepspeed.zero.GatheredParameters(cut):
        yield
