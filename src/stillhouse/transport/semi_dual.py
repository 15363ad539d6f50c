"""Semi-dual transport: a network gives the potential of one side, the c-transform that of the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

BOUND = 50.0  # of potentials, and of exponents


class Potential(nn.Module):
    """phi of each row, from the row and the mean of all: [M, k] -> [M], in (-1, 1).

    tanh(combine([context_proj(mean x); token_proj(x)])), all linear.

    Args:
        size: k.
        hidden: of both projections.
    """

    def __init__(self, size: int, hidden: int = 256) -> None:
        super().__init__()
        self.context_proj = nn.Linear(size, hidden)
        self.token_proj = nn.Linear(size, hidden)
        self.combine = nn.Linear(2 * hidden, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """[M, k] -> [M]"""
        rows = rows.to(self.combine.weight.dtype)
        context = self.context_proj(rows.mean(0, keepdim=True)).expand(len(rows), -1)
        return torch.tanh(self.combine(torch.cat([context, self.token_proj(rows)], -1))).squeeze(-1)


def c_transform(potential: Tensor, costs: Tensor, epsilon: float) -> Tensor:
    """-epsilon log sum_i mu_i exp((phi_i - C_ij) / epsilon) with mu = 1/M: [M], [K, M, N] -> [K, N].

    Potentials and exponents are cut to +-50, and log mu is log(1/M + 1e-10), as in MCW-KD's code.
    """
    exponents = ((potential.clamp(-BOUND, BOUND).unsqueeze(-1) - costs) / epsilon).clamp(-BOUND, BOUND)
    mass = torch.log(exponents.new_tensor(1.0 / max(1, costs.shape[-2]) + 1e-10))
    return -epsilon * torch.logsumexp(exponents + mass, -2)


def semi_dual_value(potential: Tensor, costs: Tensor, weights: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """mean phi + sum_k weights_k mean phi^c_k, and the same of each cost alone: [M], [K, M, N], [K] -> scalar, [K]."""
    means = c_transform(potential, costs, epsilon).mean(-1)  # [K]
    of_rows = potential.mean()
    return of_rows + (weights * means).sum(), (of_rows + means).detach()


def ascend(
    network: Potential, rows: Tensor, costs: Tensor, weights: Tensor, epsilon: float, iterations: int, rate: float
) -> None:
    """Move the network's weights uphill: `iterations` plain steps of `rate` times its gradient, cut to +-1.

    Nothing of it is followed by gradients, no `.grad` is touched, and the weights need not require gradients.
    """
    rows, costs, weights = rows.detach(), costs.detach(), weights.detach()
    learnt = _weights(network)
    for _ in range(iterations):
        with torch.enable_grad():
            leaves = {name: parameter.detach().requires_grad_() for name, parameter in learnt.items()}
            value, _ = semi_dual_value(functional_call(network, leaves, (rows,)), costs, weights, epsilon)
            slopes = torch.autograd.grad(value, list(leaves.values()))
        with torch.no_grad():
            for parameter, slope in zip(learnt.values(), slopes, strict=True):
                parameter.add_(slope.clamp(-1.0, 1.0), alpha=rate)


def climbing(network: Potential, rows: Tensor) -> Tensor:
    """The potential [M], where a step down the gradient of a loss moves the network's weights up.

    The rows' gradient is as it was, being turned twice: only that by the weights is reversed, so that one optimizer
    takes both sides of a semi-dual. The network runs as a module, so that weights in shards are gathered for it.
    """
    return _turned(network(_turned(rows)))


def _turned(rows: Tensor) -> Tensor:
    """`rows` to the last digit, with the opposite gradient."""
    return 2.0 * rows.detach() - rows


def held(network: Potential, rows: Tensor) -> Tensor:
    """The potential [M] by copies of the weights, which get no gradient and which a later `ascend` does not change."""
    copies = {name: weight.detach().clone() for name, weight in _weights(network).items()}
    return functional_call(network, copies, (rows,))


def _weights(network: Potential) -> dict[str, Tensor]:
    """Whether they are parameters or buffers."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
