"""MCW-KD against plain twins of its transports, batches against their parts, and what moves when it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from stillhouse.alignment import edit_path
from stillhouse.data.pieces import Pieces
from stillhouse.head import Embedded, Predictions
from stillhouse.methods import Clock, build
from stillhouse.methods.mcw_costs import EditCosts
from stillhouse.methods.mcw_kd import COSTS, MultiCostTransport
from stillhouse.methods.mcw_kd_dual import SemiDualTransport
from stillhouse.methods.pair import TokenizerPair
from stillhouse.transport import cost_weights, edit_costs
from tests.methods.two_sides import both, by_position, example, leaves, with_edits

OURS, THEIRS = [4, 1, 3], [2, 5, 3]
STUDENT = [f"{chr(97 + index)}{'b' * (index % 3)}" for index in range(13)]
TEACHER = [f"{chr(98 + index)}{'c' * (index % 4)}" for index in range(17)]
K = 6
CLOCK = Clock(step=3, steps=10)
NAMES = ("mcw_kd", "mcw_kd_dual")


def pieces(tokens: list[str]) -> Pieces:
    content = tuple(token.encode() for token in tokens)
    return Pieces(tuple(tokens), content, {0: "eos"}, "characters", "", frozenset(), prefix_blank=False)


def sides(ours: Sequence[int] = OURS, theirs: Sequence[int] = THEIRS) -> tuple[Predictions, Predictions]:
    """With the tokens that were read, and embeddings."""
    found = []
    for side, seed in zip(both(ours, theirs), (5, 6), strict=True):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randint(side.head.vocabulary, (len(side),), generator=generator)
        table = torch.randn(side.head.vocabulary, side.hidden.shape[1], generator=generator, dtype=torch.float64)
        embedded = Embedded(table[inputs], table[side.labels], table[0], torch.tensor(1.3, dtype=torch.float64))
        found.append(replace(side, inputs=inputs, embedded=embedded))
    return found[0], with_edits(found[0], found[1], EditCosts(STUDENT, TEACHER))


def made(name: str, student: Predictions, teacher: Predictions, **settings: Any) -> MultiCostTransport:
    method = build(name, top_k=K, **settings)
    assert isinstance(method, MultiCostTransport)
    method.size(student.head, teacher.head, 3)
    method.tokenizers = TokenizerPair(pieces(STUDENT), pieces(TEACHER), 13, 17, None, "position", "first")
    return method.double()


def edits_twin(ours: list[int], theirs: list[int]) -> Tensor:
    """[M, N], by the paths of both directions and plain distances."""
    words = [STUDENT[index] for index in ours], [TEACHER[index] for index in theirs]
    costs = torch.zeros(len(theirs), len(ours), dtype=torch.float64)
    for i, j, _ in edit_path(*words):
        costs[j, i] += Levenshtein.distance(words[0][i], words[1][j]) / 2
    for j, i, _ in edit_path(words[1], words[0]):
        costs[j, i] += Levenshtein.distance(words[0][i], words[1][j]) / 2
    return costs


def windows_twin(rows: Tensor) -> Tensor:
    return torch.stack([rows[max(0, at - 4) : at + 5].mean(0) for at in range(len(rows))])


def pairwise(rows: Tensor, columns: Tensor, of_pair: Any) -> Tensor:
    return torch.stack([torch.stack([of_pair(row, column) for column in columns]) for row in rows])


def of_l2(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum().sqrt()


def of_cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - (a @ b) / (a.norm() + 1e-7) / (b.norm() + 1e-7)


def costs_twin(
    method: MultiCostTransport, s: Predictions, t: Predictions, share: float, *, dual: bool
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """The three costs of logits and of hidden states of one example, and what a potential reads."""
    assert s.inputs is not None and t.inputs is not None
    top, theirs = (side.logits().sort(-1, descending=True).values[:, :K] for side in (s, t))
    mixed = torch.stack(
        [
            (1 - share) * top[at].detach() + share * theirs[at] if at < len(top) else theirs[at]
            for at in range(len(theirs))
        ]
    )
    p, q = (mixed / 2).softmax(-1), (top / 2).softmax(-1)
    ot: Any = method.projectors["ot"]
    salience: Any = method.projectors["salience"]
    seen, own = ot(t.hidden), s.hidden
    a, b = (salience(rows).squeeze(-1).sigmoid() for rows in (seen, own))
    if dual:
        p, q, seen, own = p.clamp(1e-7, 1), q.clamp(1e-7, 1), *(x / x.norm(dim=-1, keepdim=True) for x in (seen, own))
    floor = 0.0 if dual else 1e-7
    of_logits = [
        pairwise(p, q, of_l2),
        pairwise(p, q, lambda x, y: (x * (x / (y + floor)).log()).sum()),
        pairwise(a, b, lambda x, y: (x - y).abs()),
    ]
    wide = windows_twin(seen), windows_twin(own)
    gaps = pairwise(*wide, of_l2)
    edits = edits_twin(s.inputs.tolist(), t.inputs.tolist())
    if dual:
        of_logits = [cost / (cost.max() + 1e-7) for cost in of_logits]
        edits = edits / (edits.max() + 1e-7)
    return [of_logits, [edits, gaps / (gaps.max() + 1e-7), pairwise(*wide, of_cosine)]], [p, seen]


def sinkhorn_twin(costs: Tensor) -> Tensor:
    rows, columns = costs.shape
    kernel = (-0.1 * costs).exp()
    u, v = torch.full((rows,), 1 / rows, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
    for _ in range(100):
        v = (1 / columns) / (kernel.T @ u + 1e-9)
        u = (1 / rows) / (kernel @ v + 1e-9)
    return (u[:, None] * kernel * v * costs).sum()


def semi_dual_twin(phi: Tensor, costs: list[Tensor], weights: Tensor) -> Tensor:
    total = phi.mean()
    for weight, cost in zip(weights, costs, strict=True):
        sums = (((phi[:, None] - cost) / 0.1).clamp(-50, 50).exp() * (1 / len(phi) + 1e-10)).sum(0)
        total = total + weight * (-0.1 * sums.log()).mean()
    return total


def twin(method: MultiCostTransport, student: Predictions, teacher: Predictions, share: float) -> Tensor:
    """Both transports, added."""
    total = torch.zeros((), dtype=torch.float64)
    for index in range(len(OURS)):
        s, t = example(student, OURS, index), example(teacher, THEIRS, index)
        dual = isinstance(method, SemiDualTransport)
        by_kind, read = costs_twin(method, s, replace(t.detach(), pairing=None), share, dual=dual)
        for kind, costs in enumerate(by_kind):
            weights = method.cost_weights[kind]
            if isinstance(method, SemiDualTransport):
                total = total + len(s) * semi_dual_twin(method.potentials[kind](read[kind]), costs, weights)
            else:
                weighted = sum((w * cost for w, cost in zip(weights, costs, strict=True)), start=costs[0] * 0)
                total = total + len(s) * sinkhorn_twin(weighted)
    return total


@pytest.mark.parametrize("name", NAMES)
def test_transports_and_gradients_are_those_of_the_twin(name: str) -> None:
    student, teacher = sides()
    method = made(name, student, teacher)
    moved = [*leaves(student), *method.projectors["ot"].parameters(), *method.projectors["salience"].parameters()]
    assert method.settings["logit_weight"] == method.settings["hidden_weight"] == 1.0
    with_both = method(student, teacher, CLOCK)
    method.settings |= {"logit_weight": 0.0, "hidden_weight": 0.0}
    without = method(student, teacher, CLOCK)
    expected = twin(method, student, teacher, 0.1 + 0.9 * 0.3)
    found = with_both.loss - without.loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (with_both.sums["ot_logits"] + with_both.sums["ot_hidden"]).item() == pytest.approx(found.item(), rel=1e-9)
    slopes, wanted = (torch.autograd.grad(loss, moved, retain_graph=True) for loss in (found, expected))
    for slope, of_twin in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(slope, of_twin, rtol=1e-5, atol=1e-5 * of_twin.abs().max().item())
    if isinstance(method, SemiDualTransport):
        phi = list(method.potentials.parameters())
        turned, plain = (torch.autograd.grad(loss, phi) for loss in (found, expected))
        for slope, of_twin in zip(turned, plain, strict=True):
            torch.testing.assert_close(slope, -of_twin)


@pytest.mark.parametrize("name", NAMES)
def test_the_rest_is_cross_model_attention(name: str) -> None:
    student, teacher = sides()
    method = made(name, student, teacher, temperature=2.0, kd_weight=0.3, logit_weight=0.0, hidden_weight=0.0)
    other = build("dskd_cma", temperature=2.0, kd_weight=0.3)
    other.size(student.head, teacher.head, 3)
    other.double().load_state_dict(method.state_dict(), strict=False)
    ours, theirs = method(student, teacher, CLOCK), other(student, teacher, CLOCK)
    expected = theirs.loss + (method.label_weight - 0.7) * theirs.sums["ce"]
    torch.testing.assert_close(ours.loss, expected, check_dtype=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_sum_of_its_examples(name: str) -> None:
    student, teacher = sides()
    method = made(name, student, teacher)
    whole = method(student, teacher, CLOCK)
    parts = []
    for index in range(len(OURS)):
        ours = example(student, OURS, index)
        theirs = replace(example(teacher, THEIRS, index), pairing=by_position([OURS[index]], [THEIRS[index]]))
        parts.append(method(ours, with_edits(ours, theirs, method.edits), CLOCK))
    total = torch.stack([part.loss for part in parts]).sum()
    learnt = [*leaves(student), *method.parameters()]
    torch.testing.assert_close(whole.loss, total)
    slopes = [torch.autograd.grad(loss, learnt) for loss in (whole.loss, total)]
    for found, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(found, expected)
    for cost in (cost for row in COSTS for cost in row):
        torch.testing.assert_close(whole.sums[cost], sum(part.sums[cost] for part in parts))


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_learnt_moves(name: str) -> None:
    student, teacher = sides()
    method = made(name, student, teacher)
    grouped = {id(value) for group in method.parameter_groups() for value in group["params"]}
    assert grouped == {id(value) for value in method.parameters()}
    before = {key: value.clone() for key, value in method.named_parameters()}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method(student, teacher, CLOCK).loss.backward()
    optimizer.step()
    still = [key for key, value in method.named_parameters() if torch.equal(value, before[key])]
    assert still == []


def test_parity_has_salience_as_it_was_drawn_and_climbs_in_training_alone() -> None:
    student, teacher = sides()
    for name in NAMES:
        method = made(name, student, teacher, parity=True)
        assert not any(value.requires_grad for value in method.projectors["salience"].parameters())
    method = made("mcw_kd_dual", student, teacher, parity=True)
    assert isinstance(method, SemiDualTransport)
    assert method.settings["logit_weight"] == 10.0
    assert not list(method.potentials.parameters())  # wrappers would cut them into shards
    before = [value.clone() for value in method.potentials.buffers()]
    method.eval()(student, teacher, CLOCK)
    assert len(before) == 12 and all(map(torch.equal, before, method.potentials.buffers())) and method.forwards == 0
    terms = method.train()(student, teacher, CLOCK)
    assert not any(map(torch.equal, before, method.potentials.buffers())) and method.forwards == 1
    terms.loss.backward()  # what later examples have changed is not what earlier ones went through


def test_the_released_scale_is_a_mean_over_examples() -> None:
    """Beside a twin that adds up the clean way: the same numbers where every response has one token."""
    counts = [1, 1, 1]
    student, teacher = sides(counts, counts)
    clean, official = (made("mcw_kd", student, teacher, parity=parity) for parity in (False, True))
    clock = Clock(step=1, steps=1)  # the mixture is the teacher alone
    official.forwards += 5
    sums = [method(student, teacher, clock).sums for method in (clean, official)]
    for name in ("ot_logits", "ot_hidden"):
        torch.testing.assert_close(sums[1][name], sums[0][name] / 3)


def test_a_released_mixture_moves_with_micro_batches() -> None:
    student, teacher = sides()
    method = made("mcw_kd", student, teacher, parity=True)
    shares = [method._share(Clock(step=0, steps=4)).item() for _ in range(6)]
    assert shares == pytest.approx([0.325, 0.55, 0.775, 1.0, 1.0, 1.0])


def test_a_response_without_rows_on_one_side_is_left_out() -> None:
    student, teacher = sides([2, 3], [0, 2])
    method = made("mcw_kd", student, teacher)
    both_of_them = method.transports(student, teacher.detach(), method.at(CLOCK), method._share(CLOCK))[0]
    first = example(student, [2, 3], 1)
    second = replace(example(teacher, [0, 2], 1).detach(), pairing=by_position([3], [2]))
    second = with_edits(first, second, method.edits)
    alone = method.transports(first, second, method.at(CLOCK), method._share(CLOCK))[0]
    torch.testing.assert_close(both_of_them, alone)
    nothing = sides([2], [0])
    values, sums = method.transports(*nothing, method.at(CLOCK), method._share(CLOCK))
    assert values.tolist() == [0.0, 0.0] and sums["c_kl"].item() == 0.0


def test_weights_of_costs_follow_their_means_over_an_interval() -> None:
    student, teacher = sides()
    method = made("mcw_kd", student, teacher, update_interval=2)
    first = method.cost_weights.clone()
    means = [
        {name: torch.tensor(0.1 * at + step) for at, name in enumerate([*COSTS[0], *COSTS[1]])} for step in (0.0, 0.2)
    ]
    method.after_step(means[0], Clock(0, 10))
    assert torch.equal(method.cost_weights, first)
    method.after_step(means[1], Clock(1, 10))
    average = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(method.cost_weights, cost_weights(average))
    assert method.cost_totals.abs().sum() == 0
    assert method.gauges(CLOCK)["weight_l2"] == method.cost_weights[0, 0]
    dual = made("mcw_kd_dual", student, teacher, update_interval=1, parity=True)
    dual.after_step(means[1], Clock(0, 10))
    assert torch.equal(dual.cost_weights, torch.full((2, 3), 1 / 3).double())


def test_skipped_tokens_move_what_comes_after_them() -> None:
    plain, skipping = (EditCosts(STUDENT, TEACHER, ids) for ids in (((), ()), ((0,), ())))
    ours, theirs = np.array([0, 1, 4]), np.array([2, 3])
    assert torch.equal(edit_costs(plain(ours, theirs), 2, 3).double(), edits_twin([0, 1, 4], [2, 3]))
    found = edit_costs(skipping(ours, theirs), 2, 3)
    assert torch.equal(found[:, :2].double(), edits_twin([1, 4], [2, 3])) and found[:, 2].tolist() == [0.0, 0.0]
