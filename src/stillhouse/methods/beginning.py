"""What a method begins with: the parameters that another run of it has trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import method_weights
from stillhouse.store.records import MANIFEST


def begin_with(method: nn.Module, name: str, where: str) -> None:
    """Fill the parameters of `method` from a run of the same method; what it remembers of training begins anew.

    Args:
        method: with parameters of their final sizes.
        name: a run's folder, a checkpoint's, or the file itself.
        where: what a Mistake names.

    Raises:
        Mistake: there is no such file, it does not verify, or its tensors are not this method's.
    """
    path = method_weights(name, where)
    stored, parameters = _read(path, where), dict(method.named_parameters())
    _compare(stored, parameters, {key for key, _ in method.named_buffers()}, path, where)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(stored[key])


def _read(path: Path, where: str) -> dict[str, Tensor]:
    if (path.parent / MANIFEST).is_file():
        store.verify_folder(path.parent)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Mistake(where, f"'{path}' cannot be read: {error}", "name a method.safetensors") from None


def _compare(
    stored: Mapping[str, Tensor], parameters: Mapping[str, Tensor], buffers: set[str], path: Path, where: str
) -> None:
    """Every parameter is there in its size, and nothing that the method does not know."""
    mend = "name a run of this method and of these models"
    for key, parameter in parameters.items():
        wanted = list(parameter.shape)
        if key not in stored:
            raise Mistake(where, f"'{path}' has no '{key}', which is {wanted} here", mend)
        if list(stored[key].shape) != wanted:
            raise Mistake(where, f"'{key}' is {list(stored[key].shape)} in '{path}' and {wanted} here", mend)
    others = sorted(stored.keys() - parameters.keys() - buffers)
    if others:
        raise Mistake(where, f"'{path}' has '{others[0]}' {list(stored[others[0]].shape)}, which is not here", mend)
