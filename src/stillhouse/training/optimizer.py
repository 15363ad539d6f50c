"""Parameter groups and learning rates of the DSKD line, for parity with its published numbers.

Without `training.parity` the Trainer's own groups and schedules are used: weight decay on everything but biases and
norms, and any schedule of transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

# Names without weight decay in the DSKD line. They are GPT-2's: RMSNorm weights of other architectures are decayed.
UNDECAYED = ("bias", "ln_f.weight", "ln_1.weight", "ln_2.weight", "ln_cross_attn")
LOWEST_LEARNING_RATE = 1e-7


def dskd_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, decayed and not, by the name patterns of the DSKD line."""
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if not any(pattern in name for pattern in UNDECAYED)]
    others = [parameter for name, parameter in trained if any(pattern in name for pattern in UNDECAYED)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def dskd_schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Every group's own learning rate, by a cosine, to 1e-7 after `steps` optimizer steps; no warm-up."""
    return CosineAnnealingLR(optimizer, T_max=steps, eta_min=LOWEST_LEARNING_RATE)
