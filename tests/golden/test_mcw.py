"""MCW-KD, primal and semi-dual, and its cost weights, against the official numbers; rows are all attended positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stillhouse.head import Predictions
from stillhouse.methods import Clock, build
from stillhouse.methods.mcw_costs import (
    EditCosts,
    Example,
    dual_hidden_costs,
    dual_logit_costs,
    hidden_costs,
    logit_costs,
)
from stillhouse.methods.mcw_kd import MultiCostTransport
from stillhouse.transport import (
    Potential,
    ascend,
    cost_weights,
    edit_costs,
    entropic_plan,
    held,
    semi_dual_value,
    transport_cost,
)
from tests.golden.cross import GRADIENT, VALUE, check_gradients, counts, files, load, side
from tests.golden.test_dual_space import embedded
from tests.methods.two_sides import by_position, with_edits

SETTINGS = {
    "temperature": "kd_temperature",
    "kd_weight": "kd_rate",
    "divergence": "kd_objective",
    "top_k": "top_k_vocab",
}
PROJECTORS = [f"{name}.{part}" for name in ("t2s", "s2t", "query", "ot") for part in ("weight", "bias")]
COST = 2e-5
DISTANCE = 5e-5  # so far are the official distances between probabilities from those in fp64; ours are 5e-7


class Golden:
    """A file's arrays, its leaves, and the rows of each example as the official code sees them."""

    def __init__(self, path: Path) -> None:
        self.arrays, self.meta = load(path)
        self.hp = self.meta["hp"]
        names = ("stu_hidden", "stu_lm_head", "proj_ot_weight", "proj_ot_bias", "salience_w", "salience_b")
        self.leaves = {name: self.arrays[f"in_{name}"].clone().requires_grad_() for name in names}
        share = 0.1 + 0.9 * min(self.hp["current_step_after_increment"] / self.hp["total_iters"], 1.0)
        k = self.hp["top_k_vocab"]
        self.ours = (self.leaves["stu_hidden"] @ self.leaves["stu_lm_head"].T).topk(k).values  # [B, L, k]
        self.theirs = torch.lerp(self.ours, self.arrays["in_tea_logits"].topk(k).values, share)
        self.projected = nn.functional.linear(
            self.arrays["in_tea_hidden"], self.leaves["proj_ot_weight"], self.leaves["proj_ot_bias"]
        )
        sides = (("student", "stu"), ("teacher", "tea"))
        words, special = ([self.meta[f"{who}_{what}"] for who, _ in sides] for what in ("vocab", "special_ids"))
        self.edits = EditCosts(words[0], words[1], (special[0], special[1]))
        self.masks = [self.arrays[f"in_{short}_attention_mask"].bool() for _, short in sides]

    def __len__(self) -> int:
        return len(self.masks[0])

    def salience(self, rows: Tensor) -> Tensor:
        return (rows @ self.leaves["salience_w"].T + self.leaves["salience_b"]).squeeze(-1)

    def example(self, index: int) -> Example:
        """What costs are taken of."""
        of_student, of_teacher = (mask[index] for mask in self.masks)
        ours, theirs = (self.arrays[f"in_{short}_input_ids"][index].numpy() for short in ("stu", "tea"))
        hidden = self.projected[index][of_teacher], self.leaves["stu_hidden"][index][of_student]
        return Example(
            (self.theirs[index][of_teacher], self.ours[index][of_student]),
            (self.salience(hidden[0]), self.salience(hidden[1])),
            edit_costs(self.edits(ours[of_student], theirs[of_teacher]), int(of_teacher.sum()), int(of_student.sum())),
            hidden,
        )

    def weights(self, kind: str) -> Tensor:
        """Of a kind's costs, a leaf."""
        return self.leaves.setdefault(f"cost_w_{kind}", self.arrays[f"in_cost_w_{kind}"].clone().requires_grad_())

    def potential(self, kind: str, when: str) -> dict[str, Tensor]:
        """The weights of a potential, before or after."""
        prefix = f"{when}_{kind}_phi_" + ("after_" if when == "out" else "")
        found = {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}
        return {name.replace("_weight", ".weight").replace("_bias", ".bias"): value for name, value in found.items()}


def near(found: Tensor, expected: Tensor, relative: float) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=relative, atol=relative * expected.abs().max().item())


def check_slopes(golden: Golden, loss: Tensor, names: list[str]) -> None:
    slopes = torch.autograd.grad(loss, [golden.leaves[name] for name in names])
    for name, slope in zip(names, slopes, strict=True):
        near(slope, golden.arrays[f"grad_{name}"], GRADIENT)


@pytest.mark.parametrize("path", files("mcw_kd"))
def test_primal_costs_plans_and_losses(path: Path) -> None:
    """The gradients checked here are of what only the transport moves."""
    golden = Golden(path)
    arrays, denominator = golden.arrays, float(golden.arrays["out_denom"])
    losses: dict[str, Tensor] = {}
    for kind in ("logits", "hidden"):
        values, stack = [], torch.empty(0)
        for example in range(len(golden)):
            stack = (logit_costs if kind == "logits" else hidden_costs)(golden.example(example))
            costs = torch.einsum("kmn,k->mn", stack, golden.weights(kind))
            near(costs, arrays[f"out_cost_{kind}{example}"], COST)
            rows, columns = costs.shape
            plan = entropic_plan((-0.1 * costs).exp(), 1 / rows, 1 / columns, 100)
            near(plan, arrays[f"out_plan_{kind}{example}"], VALUE)
            values.append(transport_cost(costs))
            near(values[-1], arrays[f"out_etp_{kind}{example}"], COST)
        names = ("c2", "c4", "c_salience") if kind == "logits" else ("c2", "c5", "c6")
        for name, mean in zip(names, stack.mean((1, 2)), strict=True):  # of the last example
            key = f"out_avg_{name}_logits" if kind == "logits" else f"out_avg_{name}_last"
            near(mean, arrays[key].float(), COST)
        losses[kind] = torch.stack(values).mean() / denominator
        near(losses[kind], arrays[f"out_ot_loss_{kind}"].float(), VALUE)
    names = ["proj_ot_weight", "proj_ot_bias", "salience_w", "cost_w_logits", "cost_w_hidden"]
    check_slopes(golden, losses["logits"] + losses["hidden"], names)


@pytest.mark.parametrize("path", files("mcw_kd_dual"))
def test_dual_costs_ascent_and_losses(path: Path) -> None:
    """The potentials climb example by example, four steps each."""
    golden = Golden(path)
    arrays, denominator = golden.arrays, float(golden.arrays["out_denom"])
    epsilon, uniform = golden.hp["epsilon"], torch.full((3,), 1 / 3)
    losses = []
    for kind in ("logits", "hidden"):
        state = golden.potential(kind, "in")
        network = Potential(state["token_proj.weight"].shape[1])
        network.load_state_dict(state)
        values = []
        for example in range(len(golden)):
            costs, rows = (dual_logit_costs if kind == "logits" else dual_hidden_costs)(golden.example(example))
            for which, expected in enumerate(arrays[f"out_costs_{kind}{example}"]):
                near(costs[which], expected, DISTANCE if kind == "logits" and not which else COST)
            near(rows, arrays[f"out_x_{kind}{example}"], VALUE)
            ascend(network, rows, costs, uniform, epsilon, golden.hp["inner_iters"], golden.hp["inner_lr"])
            value, by_cost = semi_dual_value(held(network, rows), costs, uniform, epsilon)
            near(value, arrays[f"out_L_{kind}{example}"], VALUE)
            near(by_cost, arrays[f"out_W_{kind}{example}"], VALUE)
            values.append(value)
        for name, expected in golden.potential(kind, "out").items():
            near(network.state_dict()[name], expected, VALUE)
        losses.append(torch.stack(values).mean() / denominator)
        near(losses[-1], arrays[f"out_ot_loss_{kind}"].float(), VALUE)
    check_slopes(golden, 10.0 * losses[0] + 10.0 * losses[1], ["proj_ot_weight", "proj_ot_bias"])


@pytest.mark.parametrize("path", files("mcw_qp"))
def test_cost_weights(path: Path) -> None:
    arrays, meta = load(path)
    found = cost_weights(arrays["in_costs"], meta["sigma"], meta["lower"])
    torch.testing.assert_close(found, arrays["out_weights"], rtol=0.0, atol=1e-4)


def predictions(golden: Golden, who: str, labels: Tensor) -> Predictions:
    """The rows of one side where `labels` are not -100."""
    if who == "stu":
        hidden, weight = golden.leaves["stu_hidden"], golden.leaves["stu_lm_head"]
    else:
        hidden, weight = golden.arrays["in_tea_hidden"], golden.arrays["in_tea_lm_head"]
    return side(hidden, weight, labels, golden.arrays[f"in_{who}_input_ids"])


def attended(golden: Golden, who: str) -> Tensor:
    mask = golden.arrays[f"in_{who}_attention_mask"].long()
    return mask - 100 * (1 - mask)


@pytest.mark.parametrize("path", [*files("mcw_kd"), *files("mcw_kd_dual")])
def test_the_whole_loss(path: Path) -> None:
    """The method itself: spaces on scored rows, transports on all attended ones, which teachers have fewer of here."""
    golden = Golden(path)
    arrays, hp = golden.arrays, golden.hp
    settings = {name: hp[theirs] for name, theirs in SETTINGS.items()}
    method = build("mcw_kd_dual" if "dual" in path.stem else "mcw_kd", parity=True, **settings)
    assert isinstance(method, MultiCostTransport)
    sides, everywhere = [], []
    for who in ("stu", "tea"):
        sides.append(embedded(arrays, who, predictions(golden, who, arrays[f"in_{who}_label"])))
        everywhere.append(predictions(golden, who, attended(golden, who)))
    for both_sides, of in (
        (sides, lambda who: arrays[f"in_{who}_label"]),
        (everywhere, lambda who: attended(golden, who)),
    ):
        paired = replace(both_sides[1], pairing=by_position(counts(of("stu")), counts(of("tea"))))
        both_sides[1] = with_edits(both_sides[0], paired, golden.edits)
    method.size(sides[0].head, sides[1].head, 0)
    state = {f"projectors.{name}": arrays[f"in_proj_{name.replace('.', '_')}"] for name in PROJECTORS}
    state |= {f"projectors.salience.{name}": arrays[f"in_salience_{name[0]}"] for name in ("weight", "bias")}
    if "dual" in path.stem:
        for index, kind in enumerate(("logits", "hidden")):
            state |= {f"potentials.{index}.{name}": value for name, value in golden.potential(kind, "in").items()}
    assert method.load_state_dict(state, strict=False).unexpected_keys == []
    method.forwards += hp["current_step_after_increment"] - 1
    clock = Clock(steps=hp["total_iters"])
    now = method.at(clock)
    spaces = method.spaces(sides[0], sides[1], now)
    values, sums = method.transports(everywhere[0], everywhere[1].detach(), now, method._share(clock))
    loss = spaces.loss + now["logit_weight"] * values[0] + now["hidden_weight"] * values[1]
    denominator = float(arrays["out_denom"])
    for name, ours in (("ot_loss_logits", "ot_logits"), ("ot_loss_hidden", "ot_hidden")):
        near(sums[ours] / denominator, arrays[f"out_{name}"].float(), VALUE)
    near(spaces.sums["kd"] / denominator, arrays["out_kd_loss"].float(), VALUE)
    near(loss / denominator, arrays["out_total"], VALUE)
    (loss / denominator).backward()
    leaves = {name: golden.leaves[name] for name in ("stu_hidden", "stu_lm_head")}
    named = {f"projectors.{name}": f"proj_{name.replace('.', '_')}" for name in PROJECTORS}
    leaves |= {named[name]: value for name, value in method.named_parameters() if name in named}
    check_gradients(arrays, "grad_", leaves)
