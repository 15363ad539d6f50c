"""Optimal transport between the positions of two sequences: costs of standing rows side by side, plans, and their loss.

Rows of a cost matrix are the M positions of the one side (in MCW-KD the teacher's), columns the N of the other.

    costs        matrices [M, N] from rows of both sides, none with an [M, N, k] tensor on the way
    sinkhorn     entropic plans between given marginals, by scaling
    semi_dual    the potential of one side, learnt, and the c-transform that gives the other's
    weights      how much each of several costs counts
"""

from stillhouse.transport.costs import (
    context_windows,
    cosine_distances,
    distances,
    divided_by_maximum,
    edit_costs,
    kl_divergences,
    salience_gaps,
)
from stillhouse.transport.semi_dual import Potential, ascend, c_transform, climbing, held, semi_dual_value
from stillhouse.transport.sinkhorn import entropic_plan, transport_cost
from stillhouse.transport.weights import cost_weights

__all__ = [
    "Potential",
    "ascend",
    "c_transform",
    "climbing",
    "context_windows",
    "cosine_distances",
    "cost_weights",
    "distances",
    "divided_by_maximum",
    "edit_costs",
    "entropic_plan",
    "held",
    "kl_divergences",
    "salience_gaps",
    "semi_dual_value",
    "transport_cost",
]
