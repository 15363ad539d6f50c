"""DSKD, cross-model attention and DSKD-v2 against dense twins by autograd, and what each loss may train."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillhouse import divergence
from stillhouse.head import Blocks, Embedded, Head, Predictions
from stillhouse.methods import Clock, Method, build
from stillhouse.methods.dual_space_v2 import DualSpaceByHeads
from stillhouse.mistakes import Mistake
from tests.methods.two_sides import by_position, example, leaves, logits, side

COUNTS = ([4, 1, 3], [2, 5, 3])
NAMES = ("dskd", "dskd_cma", "dskd_v2")
Weights = dict[str, Tensor]


def embedded(of: Predictions, seed: int) -> Predictions:
    size = of.hidden.shape[1]
    rows = torch.randn(2 * len(of) + 1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return replace(of, embedded=Embedded(rows[: len(of)], rows[len(of) : -1], rows[-1], rows.new_tensor(1.7)))


def world(name: str, **settings: Any) -> tuple[Method, Predictions, Predictions]:
    """A method with fp64 projectors, a student, and a teacher of the same rows or, of `dskd_cma`, of others."""
    across = name == "dskd_cma"
    student = embedded(side(0, COUNTS[0], 5, 5), 7)
    teacher = embedded(side(1, COUNTS[1] if across else COUNTS[0], 6 if across else 5, 7), 8)
    if across:
        teacher = replace(teacher, pairing=by_position(*COUNTS))
    method = build(name, **settings)
    method.size(student.head, teacher.head, 3)
    if isinstance(method, DualSpaceByHeads):  # else the teacher's likeliest tokens would be kept everywhere
        noise = torch.randn(5, 7, generator=torch.Generator().manual_seed(9))
        method.load_state_dict({"projectors.t2s.weight": noise})
    return method.double(), student, teacher


def weights(method: Method) -> Weights:
    return dict(method.named_parameters())


def linear(rows: Tensor, state: Weights, name: str) -> Tensor:
    bias = state.get(f"projectors.{name}.bias")
    return rows @ state[f"projectors.{name}.weight"].T + (0.0 if bias is None else bias)


def deviation(rows: Tensor, filler: Tensor | None, positions: int) -> Tensor:
    if filler is not None:
        rows = torch.cat([rows, filler.expand(positions - len(rows), -1)])
    return rows.std()


def attended(student: Predictions, teacher: Predictions, state: Weights, scope: str) -> tuple[Tensor, Tensor]:
    """Both directions with one dense score matrix, in which other examples weigh exp(-100000)."""
    ours, theirs = student.embedded, teacher.embedded
    assert ours is not None and theirs is not None
    hidden = teacher.hidden.detach()
    keys = torch.cat([theirs.inputs, theirs.labels], -1)
    e = theirs.labels
    if scope == "padded":
        assert theirs.hidden_deviation is not None
        twice = torch.cat([theirs.filler, theirs.filler])
        keys = keys / deviation(keys, twice, teacher.positions)
        e = e / deviation(e, theirs.filler, teacher.positions)
        hidden = hidden / theirs.hidden_deviation
    else:
        per = [
            torch.stack([rows[teacher.sequence == b].std() for b in teacher.sequence.tolist()])[:, None]
            for rows in (keys, e, hidden)
        ]
        keys, e, hidden = keys / per[0], e / per[1], hidden / per[2]
    scores = linear(torch.cat([ours.inputs, ours.labels], -1), state, "query") @ keys.T / math.sqrt(keys.shape[-1])
    scores = scores - 100_000.0 * (student.sequence[:, None] != teacher.sequence)
    return scores.softmax(1) @ linear(hidden + e, state, "t2s"), scores.softmax(0).T @ linear(
        student.hidden, state, "s2t"
    )


def twin(name: str, method: Method, student: Predictions, teacher: Predictions) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of dense logits, and the three parts."""
    now, state = method.at(Clock()), weights(method)
    w_s, w_t = student.head.weight, teacher.head.weight.detach()
    z_t = teacher.hidden.detach() @ w_t.T
    if name == "dskd_cma":
        to_student, to_teacher = attended(student, teacher, state, now["std_scope"])
    else:
        to_student = linear(teacher.hidden.detach(), state, "t2s")
        if name == "dskd":
            to_teacher = linear(student.hidden, state, "s2t")
        else:
            to_teacher = student.hidden @ (w_s.detach().T @ torch.linalg.pinv(w_t.T))
    labels = z_t.argmax(-1) if name == "dskd_v2" else student.labels
    z = to_student @ w_s.detach().T
    right = (z.argmax(-1) == labels).double() if name != "dskd" else torch.ones(len(labels), dtype=torch.float64)
    compare = [now["divergence"], now["s2t_divergence"]]
    t2s, s2t = (
        divergence.build(compare[0] if kind == "same" else kind, temperature=now["temperature"]) for kind in compare
    )
    parts = {
        "t2s_ce": -z.log_softmax(-1).gather(-1, labels[:, None]).sum(),
        "t2s_kd": (t2s(logits(student), z.detach()) * right).sum(),
        "s2t_kd": s2t(to_teacher @ w_t.T, z_t).sum(),
    }
    ce = -logits(student).log_softmax(-1).gather(-1, student.labels[:, None]).sum()
    kd = parts["t2s_ce"] + parts["t2s_kd"] + parts["s2t_kd"]
    return (1.0 - now["kd_weight"]) * ce + now["kd_weight"] * kd, parts


CASES = [
    *((name, {"kd_weight": 0.3}) for name in NAMES),
    ("dskd", {"divergence": "todi", "s2t_divergence": "same", "temperature": 1.5}),
    ("dskd_cma", {"std_scope": "padded", "divergence": "reverse_kl"}),
    ("dskd_cma", {"divergence": "adaptive_kl", "s2t_divergence": "taid"}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_values_and_gradients_equal_the_dense_formula(name: str, settings: dict[str, Any]) -> None:
    method, student, teacher = world(name, **settings)
    wanted, parts = twin(name, method, student, teacher)
    terms = method(student, teacher, Clock())
    tight = 1e-5 if name == "dskd_v2" else 1e-9  # its maps are fp32
    torch.testing.assert_close(terms.loss.detach(), wanted.detach(), rtol=tight, atol=tight)
    for part, value in parts.items():
        torch.testing.assert_close(terms.sums[part], value.detach(), rtol=tight, atol=tight)
    of = [*leaves(student), *method.parameters()]
    for found, expected in zip(torch.autograd.grad(terms.loss, of), torch.autograd.grad(wanted, of), strict=True):
        torch.testing.assert_close(found, expected, rtol=10 * tight, atol=10 * tight)
        assert expected.abs().max() > 1e-6
    right = terms.sums["t2s_agreement" if name == "dskd_v2" else "t2s_accuracy"].item()
    assert 0 < right < len(student)


TRAINS = {
    "t2s_ce": {"projectors.t2s", "projectors.query"},
    "t2s_kd": {"student"},
    "s2t_kd": {"hidden", "projectors.s2t", "projectors.query"},
}


@pytest.mark.parametrize("name", NAMES)
def test_each_loss_trains_what_it_should(name: str) -> None:
    """By the change of the method's gradients when one of the twin's parts is left out: the detach points."""
    method, student, teacher = world(name, kd_weight=1.0)
    _, parts = twin(name, method, student, teacher)
    named = {**weights(method), "hidden": student.hidden, "weight": student.head.weight}
    reached = {}
    for part, value in parts.items():
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
        reached[part] = {key for key, found in zip(named, gradients, strict=True) if found is not None and found.any()}
    for part, keys in reached.items():
        expected = {key for key in named if any(key.startswith(prefix) for prefix in TRAINS[part])}
        if part == "t2s_kd":
            expected = {"hidden", "weight"}
        assert keys == expected, part
    (method(student, teacher, Clock()).loss).backward()
    assert teacher.hidden.grad is None and teacher.head.weight.grad is None
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in named.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_sum_over_examples(name: str) -> None:
    method, student, teacher = world(name)
    whole = method(student, teacher, Clock())
    counts = COUNTS if name == "dskd_cma" else (COUNTS[0], COUNTS[0])
    parts = []
    for index in range(len(COUNTS[0])):
        ours, theirs = (example(rows, n, index) for rows, n in zip((student, teacher), counts, strict=True))
        if name == "dskd_cma":
            theirs = replace(theirs, pairing=by_position([COUNTS[0][index]], [COUNTS[1][index]]))
        parts.append(method(ours, theirs, Clock()))
    torch.testing.assert_close(whole.loss, sum(part.loss for part in parts), rtol=1e-9, atol=1e-9)
    for key, value in whole.sums.items():
        torch.testing.assert_close(value, sum(part.sums[key] for part in parts), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_change_nothing(name: str) -> None:
    method, student, teacher = world(name)
    whole = method(student, teacher, Clock()).loss
    method.blocks = Blocks(rows=2, elements=7, vocabulary_tile=2)
    torch.testing.assert_close(method(student, teacher, Clock()).loss, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["dskd", "dskd_v2"])
def test_of_two_tokenizers_the_rows_that_correspond_are_compared(name: str) -> None:
    """As if there were no others; labels are learnt everywhere, and an unknown teacher token leaves its row out."""
    method = build(name).double()
    student, teacher = side(0, COUNTS[0], 5, 5), side(1, COUNTS[1], 6, 7)
    names = np.array([2, 0, -1, 1, 4, 3])
    if isinstance(method, DualSpaceByHeads):
        method.by_tokens(student.head, teacher.head, np.array([0, 1, 2, 3, 4]), np.array([1, 3, 0, 5, 4]), names)
    else:
        method.size(student.head, teacher.head, 3)
    method.double()
    pairing = by_position(*COUNTS)
    found = method(student, replace(teacher, pairing=pairing), Clock())
    pairs = [*zip(pairing.student_index.tolist(), pairing.teacher_index.tolist(), strict=True)]
    likeliest = logits(teacher).argmax(-1).tolist()
    if name == "dskd_v2":
        pairs = [(row, other) for row, other in pairs if names[likeliest[other]] >= 0]
        assert 0 < len(pairs) < len(pairing)
    rows, others = (torch.tensor(part) for part in zip(*pairs, strict=True))
    alone = method(
        student.at(rows), replace(teacher.at(others), pairing=by_position([len(rows)], [len(rows)])), Clock()
    )
    for part in ("t2s_ce", "t2s_kd", "s2t_kd", "kd"):
        torch.testing.assert_close(found.sums[part], alone.sums[part], rtol=1e-9, atol=1e-9)
    ce = -logits(student).log_softmax(-1).gather(-1, student.labels[:, None]).sum()
    torch.testing.assert_close(found.sums["ce"], ce.detach(), rtol=1e-9, atol=1e-9)
    assert found.sums["aligned"].item() == len(pairs)


def test_the_maps_of_v2_keep_the_logits_of_shared_tokens() -> None:
    """The student is as wide as the teacher and shares all tokens, so that nothing is lost on the way."""
    ours, theirs = side(0, [6], 9, 5), side(1, [6], 9, 5)
    method = build("dskd_v2")
    method.size(ours.head, Head(ours.head.weight @ torch.diag(torch.arange(1.0, 6.0).double())), 0)
    hidden = theirs.hidden.detach().float()
    kept = hidden @ weights(method)["projectors.t2s.weight"].T @ ours.head.weight.float().T
    wanted = hidden @ torch.diag(torch.arange(1.0, 6.0)) @ ours.head.weight.float().T
    torch.testing.assert_close(kept, wanted, rtol=1e-4, atol=1e-4)


def test_v2_under_parity_takes_means_over_the_rows_of_each_term() -> None:
    means, student, teacher = world("dskd_v2", parity=True)
    sums, *_ = world("dskd_v2")
    ours, theirs = (method(student, teacher, Clock()).sums for method in (means, sums))
    agreeing = theirs["t2s_agreement"].item()
    assert 0 < agreeing < len(student)
    torch.testing.assert_close(ours["t2s_kd"], theirs["t2s_kd"] * len(student) / agreeing)
    torch.testing.assert_close(ours["t2s_ce"], theirs["t2s_ce"])


def test_projectors_are_drawn_by_their_seed_alone_in_fp32_and_in_order() -> None:
    student, teacher = side(0, [3], 5, 4), side(1, [3], 6, 6)
    made = []
    for seed in (77, 77, 78):
        method = build("dskd_cma")
        torch.rand(seed)  # whatever has been drawn before
        method.size(student.head, teacher.head, seed)
        made.append(method.state_dict())
    torch.manual_seed(77)
    wanted = {"t2s": nn.Linear(6, 4), "s2t": nn.Linear(4, 6), "query": nn.Linear(8, 12)}
    for name, linear_ in wanted.items():
        for key, value in linear_.state_dict().items():
            assert torch.equal(made[0][f"projectors.{name}.{key}"], value) and value.dtype == torch.float32
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    assert not any(torch.equal(made[0][key], made[2][key]) for key in made[0])


def test_projectors_have_a_group_of_their_own_and_may_come_from_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "method.safetensors")
    student, teacher = side(0, [3], 5, 4), side(1, [3], 6, 6)
    first, second = build("dskd"), build("dskd", projectors=path, projector_lr=0.25, projector_weight_decay=0.5)
    first.size(student.head, teacher.head, 1)
    with pytest.raises(Mistake, match="no file or folder"):
        second.size(student.head, teacher.head, 2)
    save_file(first.state_dict(), path)
    second.size(student.head, teacher.head, 2)
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)
    (group,) = second.parameter_groups()
    assert group["params"] == list(second.parameters()) and len(group["params"]) == 4
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.5)
    with pytest.raises(Mistake, match=r"'projectors.t2s.weight' is \[4, 6\] in .* and \[6, 4\] here"):
        build("dskd", projectors=path).size(teacher.head, student.head, 2)


def test_the_divergence_may_follow_a_schedule() -> None:
    ramp = {"schedule": "linear", "start": 0.1, "end": 0.9}
    method, student, teacher = world("dskd", divergence="taid", t=ramp)
    found = [method(student, teacher, Clock(step, 10)).sums["t2s_kd"].item() for step in (0, 5, 10)]
    constant = [
        world("dskd", divergence="taid", t=t)[0](student, teacher, Clock()).sums["t2s_kd"].item()
        for t in (0.1, 0.5, 0.9)
    ]
    assert found == pytest.approx(constant) and all(one != other for one, other in pairwise(found))
