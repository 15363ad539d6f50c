"""The processes of one run: what the first one does alone, what all do together, and what they must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType
from torch import distributed
from transformers import TrainingArguments

from stillhouse import store
from stillhouse.mistakes import Mistake

Found = TypeVar("Found")


def is_first() -> bool:
    """Whether this process writes and speaks; asked of the launcher, so that it works before any group exists."""
    return int(os.environ.get("RANK", "0")) == 0


def launched() -> int:
    """How many processes the launcher (torchrun, accelerate) says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if _grouped() else 0


def by_first(work: Callable[[], Found]) -> Found:
    """What `work` gives, done by the first process alone and sent to all; its Mistake is everybody's."""
    if not _grouped():
        return work()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = work()
        except Mistake as mistake:
            outcome[1] = mistake
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@contextmanager
def written_together(path: Path, *, keep_previous: bool = False) -> Iterator[Path]:
    """`store.write_folder` for all processes: one temporary folder that each writes its part into, then one rename.

    The processes must see the same file system.
    """
    if not _grouped():
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


def summed(values: list[float]) -> list[float]:
    """`values` added up over all processes, in fp64."""
    if not _grouped():
        return values
    device = None if "gloo" in distributed.get_backend() else torch.accelerator.current_accelerator()
    vector = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(vector)
    return vector.tolist()


def share_of(items: list[Found], rank: int | None = None) -> list[Found]:
    """What of `items` falls to this process, or to the one of number `rank`; the first one never has fewer."""
    if not _grouped():
        return items
    return items[distributed.get_rank() if rank is None else rank :: distributed.get_world_size()]


def joined(items: list[Found]) -> list[Found]:
    """The lists of all processes, one after the other."""
    if not _grouped():
        return items
    lists: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
