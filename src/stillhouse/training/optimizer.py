"""Parameter groups and learning rates of the official loops, for parity with their published numbers.

Without `training.parity` the Trainer's own groups and schedules are used: weight decay on everything but biases and
norms, and any schedule of transformers. A method's own groups are added in either case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from stillhouse.mistakes import Mistake

# Names without weight decay in the DSKD line. They are GPT-2's: RMSNorm weights of other architectures are decayed.
UNDECAYED = ("bias", "ln_f.weight", "ln_1.weight", "ln_2.weight", "ln_cross_attn")
LOWEST_LEARNING_RATE = 1e-7


def dskd_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, decayed and not, by the name patterns of the DSKD line."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if not any(pattern in name for pattern in UNDECAYED)]
    others = [parameter for name, parameter in trained if any(pattern in name for pattern in UNDECAYED)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def taid_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of TAID's repository: what is in an nn.LayerNorm or called bias is not decayed; RMSNorms are."""
    of_norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    spared = [parameter for name, parameter in trained if "bias" in name or id(parameter) in of_norms]
    spared_ids = {id(parameter) for parameter in spared}
    decayed = [parameter for _, parameter in trained if id(parameter) not in spared_ids]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def give_own_groups(optimizer: Optimizer, groups: Iterable[dict[str, Any]]) -> None:
    """Move the parameters of `groups` out of the optimizer's groups into these, each with its own settings.

    A group that has none left, as the student's where it is frozen, is no group any more.
    """
    for own in groups:
        moved = {id(parameter) for parameter in own["params"]}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
        optimizer.add_param_group(own)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def give_named_groups(optimizer: Optimizer, model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    """Give the parameters that match a group's `pattern` its learning rate and decay; the first that matches counts.

    What a group does not say stays as it is in the optimizer.

    Raises:
        Mistake: a pattern that is in no trained parameter's name, beside those of groups before it.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for index, group in enumerate(groups):
        settings = {key: float(group[key]) for key in ("lr", "weight_decay") if key in group}
        made = []
        for own in optimizer.param_groups:
            found = [p for p in own["params"] if id(p) in names and re.search(group["pattern"], names[id(p)])]
            if found:
                made.append({**own, **settings, "params": found})
        if not made:
            where = f"training.param_groups.{index}.pattern"
            mend = f"names are such as '{next(iter(names.values()), '')}'"
            raise Mistake(where, f"'{group['pattern']}' matches no parameter that learns", mend)
        for parameter in (parameter for part in made for parameter in part["params"]):
            del names[id(parameter)]
        give_own_groups(optimizer, made)


def dskd_schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Every group's own learning rate, by a cosine, to 1e-7 after `steps` optimizer steps; no warm-up."""
    return CosineAnnealingLR(optimizer, T_max=steps, eta_min=LOWEST_LEARNING_RATE)
