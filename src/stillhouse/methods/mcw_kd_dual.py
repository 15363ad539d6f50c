"""MCW-KD in its semi-dual form: a network gives the teacher's potential, and the costs are transformed one by one.

(Vuong et al., AAAI 2026, doi:10.1609/aaai.v40i39.40619.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.head import Head
from stillhouse.methods.clock import Clock
from stillhouse.methods.mcw_costs import Example, dual_hidden_costs, dual_logit_costs
from stillhouse.methods.mcw_kd import LOGITS, MultiCostTransport
from stillhouse.transport import Potential, ascend, climbing, held, semi_dual_value

ITERATIONS, RATE = 4, 0.01  # of the released ascent
WEIGHT = 10.0  # of both transports in the released code


class SemiDualTransport(MultiCostTransport):
    """label_weight CE + kd_weight KD + logit_weight W_logits + hidden_weight W_hidden, W in the semi-dual form.

    Clean: the potentials climb at every optimizer step, by the same optimizer and the whole step's tokens. parity: they
    climb four plain steps for each example as it is met, on every process by itself, and costs weigh the same for ever;
    what the method moves itself is in buffers, which no wrapper cuts into shards.
    """

    label_weight = 0.5

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__(name, settings)
        for weight in ("logit_weight", "hidden_weight"):
            if self.settings[weight] is None:
                self.settings[weight] = WEIGHT if self.settings["parity"] else 1.0

    def first_weights(self) -> Tensor:
        """The same of each cost."""
        return torch.full((2, 3), 1.0 / 3.0)

    def make(self, student: Head, teacher: Head, seed: int) -> None:
        """The primal's, and a potential each for logits and for hidden states."""
        super().make(student, teacher, seed)
        k = min(int(self.settings["top_k"]), student.vocabulary, teacher.vocabulary)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.potentials = nn.ModuleList([Potential(k), Potential(student.weight.shape[1])])
        if self.settings["parity"]:
            _as_buffers(self.potentials)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The projectors', and the potentials, which are not decayed, and which no optimizer moves in parity."""
        groups = super().parameter_groups()
        if self.settings["parity"]:
            return groups
        rate = self.settings["projector_learning_rate"]
        return [*groups, {"params": list(self.potentials.parameters()), "lr": rate, "weight_decay": 0.0}]

    def of_example(self, kind: int, example: Example) -> tuple[Tensor, Tensor]:
        """The semi-dual of one kind, a scalar, and that of each cost alone, [3]."""
        costs, rows = dual_logit_costs(example) if kind == LOGITS else dual_hidden_costs(example)
        network, epsilon = self.potentials[kind], self.settings["epsilon"]
        assert isinstance(network, Potential)
        weights = self.cost_weights[kind].to(costs.dtype)
        if not self.settings["parity"]:
            return semi_dual_value(climbing(network, rows), costs, weights, epsilon)
        if self.training:
            ascend(network, rows, costs, weights, epsilon, ITERATIONS, RATE)
        return semi_dual_value(held(network, rows), costs, weights, epsilon)

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> None:
        """As the primal; in parity nothing."""
        if not self.settings["parity"]:
            super().after_step(means, clock)


def _as_buffers(network: nn.Module) -> None:
    """Every parameter a buffer of the same name."""
    for module in network.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, weight.detach())
