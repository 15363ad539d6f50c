"""The processes of one run: those of `stillhouse.processes`, and what transformers and accelerate must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import distributed
from transformers import TrainingArguments

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.processes import by_first, grouped, is_first, joined, launched, rank, share_of, summed

__all__ = [
    "by_first",
    "check",
    "check_wrapper",
    "is_first",
    "joined",
    "launched",
    "rank",
    "sharding",
    "share_of",
    "summed",
    "whole_weights",
    "written_together",
]


def check(arguments: TrainingArguments) -> None:
    """Refuse a launch whose processes would each train alone.

    Raises:
        Mistake: the launcher started several processes, but they form no group of that size.
    """
    if launched() != arguments.world_size:
        wrong = f"{launched()} processes were started, but each sees {arguments.world_size}"
        raise Mistake("", wrong, "on machines without a GPU add --training.use_cpu=true")


def sharding(arguments: TrainingArguments) -> str:
    """What cuts the student's weights into shards, "FSDP" or "DeepSpeed"; empty where every process has them whole."""
    if arguments.deepspeed_plugin is not None:
        return "DeepSpeed"
    by_launcher = os.environ.get("ACCELERATE_USE_FSDP") == "true"  # accelerate's own configuration file
    return "FSDP" if arguments.fsdp_plugin_args is not None or by_launcher else ""


def check_wrapper(used: DistributedType, arguments: TrainingArguments) -> None:
    """Refuse shards that were asked for and are none: without a GPU accelerate goes back to whole copies, silently.

    Raises:
        Mistake: FSDP was asked for, and is not what accelerate uses.
    """
    if sharding(arguments) == "FSDP" and used != DistributedType.FSDP:
        wrong = f"FSDP was asked for, but accelerate uses {used.value} on this machine"
        raise Mistake("training.fsdp", wrong, "it needs GPUs, and several processes")


@contextmanager
def written_together(path: Path, *, keep_previous: bool = False) -> Iterator[Path]:
    """`store.write_folder` for all processes: one temporary folder that each writes its part into, then one rename.

    The processes must see the same file system.
    """
    if not grouped():
        with store.write_folder(path, keep_previous=keep_previous) as folder:
            yield folder
        return
    if is_first():
        with store.write_folder(path, keep_previous=keep_previous) as folder:
            distributed.broadcast_object_list([folder], src=0)
            yield folder
            distributed.barrier()  # everybody's part is written
    else:
        shared: list[Any] = [None]
        distributed.broadcast_object_list(shared, src=0)
        with store.blaming(path, shared[0]):
            yield shared[0]
        distributed.barrier()
    distributed.barrier()  # the folder has its name


@contextmanager
def whole_weights(arguments: TrainingArguments) -> Iterator[None]:
    """Load models whole though ZeRO-3 is on: the probes look at weights, and a teacher is nobody's shard."""
    if arguments.deepspeed_plugin is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    plugin: Any = (
        arguments.deepspeed_plugin
    )  # of the recipe's training.deepspeed, else of accelerate's configuration file
    config = getattr(arguments, "hf_deepspeed_config", None) or plugin.dschf
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)
