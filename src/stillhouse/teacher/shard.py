"""A teacher cut over processes, each of which keeps a part and gathers a layer while it runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from stillhouse.mistakes import Mistake
from stillhouse.models import backbone


def elements(parameter: Tensor) -> int:
    """How many numbers a parameter has over all processes, whatever cut it."""
    return getattr(parameter, "ds_numel", parameter.numel())


def held(parameter: Tensor) -> Tensor:
    """What of a parameter this process keeps."""
    return parameter.to_local() if isinstance(parameter, DTensor) else getattr(parameter, "ds_tensor", parameter)


def shard(model: PreTrainedModel, device: torch.device, processes: int) -> None:
    """Cut the backbone of a frozen `model` over all processes; the head stays whole in each, so that it can be read.

    Embeddings that are tied to the head stay whole with it. Every process must run the model equally often.

    Args:
        model: whole, on any device; afterwards its parts are on `device`.
        processes: of the group that is there.

    Raises:
        Mistake: the architecture does not say what its layers are.
    """
    body, kinds = backbone(model), set(model._no_split_modules or ())
    layers = [module for module in body.modules() if type(module).__name__ in kinds]
    if not layers:
        raise Mistake("teacher.shard", f"{type(model).__name__} does not name its layers", "write none")
    mesh = init_device_mesh(device.type, (processes,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    head = model.get_output_embeddings()
    whole = set() if head is None else set(head.parameters())
    table = model.get_input_embeddings()
    if table is not None and not whole & set(table.parameters()):
        fully_shard(table, mesh=mesh, reshard_after_forward=True)  # so that it gathers itself when it is called alone
    fully_shard(body, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    model.to(device)  # type: ignore[arg-type]
