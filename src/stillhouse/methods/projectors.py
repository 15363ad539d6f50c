"""Linear maps between the hidden states of two models, which belong to a method and are trained with the student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stillhouse.mistakes import Mistake

PREFIX = "projectors."


def made(sizes: Mapping[str, tuple[int, int]], seed: int, *, bias: bool = True) -> nn.ModuleDict:
    """Projectors by name from their (in, out), fp32 with torch's default initialisation, drawn in this order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = {name: nn.Linear(*size, bias=bias, dtype=torch.float32, device="cpu") for name, size in sizes.items()}
    return nn.ModuleDict(linear)


def load(projectors: nn.ModuleDict, path: str) -> None:
    """Fill `projectors` from the `method.safetensors` of another run.

    Raises:
        Mistake: there is no such file, or it has no projectors of these names and sizes.
    """
    if not Path(path).is_file():
        raise Mistake("method.projectors", f"'{path}' is no file", "name the method.safetensors of a checkpoint")
    stored = {name.removeprefix(PREFIX): value for name, value in load_file(path).items() if name.startswith(PREFIX)}
    wanted = {name: value.shape for name, value in projectors.state_dict().items()}
    for name, shape in wanted.items():
        if name not in stored or stored[name].shape != shape:
            found = f"{list(stored[name].shape)}" if name in stored else "nothing"
            raise Mistake("method.projectors", f"'{path}' has {found} for '{name}', which is {list(shape)} here")
    projectors.load_state_dict({name: stored[name] for name in wanted})


def group(projectors: nn.ModuleDict, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """One optimizer group of all of them, biases included, as in the DSKD line."""
    return [{"params": list(projectors.parameters()), "lr": learning_rate, "weight_decay": weight_decay}]


def projected(projectors: nn.ModuleDict, name: str, rows: Tensor) -> Tensor:
    """[N, in] -> [N, out] in the projector's own dtype, whatever autocast is on."""
    linear: Any = projectors[name]
    with torch.autocast(rows.device.type, enabled=False):
        return linear(rows.to(linear.weight.dtype))
