"""DSKD, cross-model attention and DSKD-v2 against the official numbers: values to 1e-5, gradients to 1e-4, fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.alignment import Alignment
from stillhouse.head import Embedded, Head, Pairing, Predictions
from stillhouse.methods import Clock, build
from stillhouse.methods.dual_space_v2 import DualSpaceByHeads
from stillhouse.methods.method import Method, Terms
from tests.golden.cross import GOLDEN, GRADIENT, VALUE, both, check_gradients, files, load
from tests.golden.test_mined import exact_pairs

# What the official code logs, and what our sums call it.
LOGGED = {
    "nll_loss": "ce",
    "kd_loss": "kd",
    "t2s_ce_loss": "t2s_ce",
    "t2s_kd_loss": "t2s_kd",
    "s2t_kd_loss": "s2t_kd",
}


def settings_of(meta: dict[str, Any]) -> dict[str, Any]:
    hp = meta["hp"]
    return {"temperature": hp["kd_temperature"], "kd_weight": hp["kd_rate"], "divergence": hp["kd_objective"]}


Leaves = dict[str, Tensor]


def with_projectors(method: Method, arrays: dict[str, Tensor], student: Predictions, teacher: Predictions) -> Leaves:
    """The file's projectors in `method`, and their parameters by the names of their gradients."""
    method.size(student.head, teacher.head, 0)
    projectors = method.projectors
    assert isinstance(projectors, nn.ModuleDict)
    state = {name: arrays[f"in_proj_{name.replace('.', '_')}"] for name in projectors.state_dict()}
    projectors.load_state_dict(state)
    return {f"proj_{name.replace('.', '_')}": value for name, value in projectors.named_parameters()}


def embedded(arrays: dict[str, Tensor], who: str, side: Predictions) -> Predictions:
    table = arrays[f"in_{who}_embed"]
    assert side.inputs is not None
    deviation = arrays[f"in_{who}_hidden"].std()
    return replace(side, embedded=Embedded(table[side.inputs], table[side.labels], table[0], deviation))


def check(arrays: dict[str, Tensor], terms: Terms, leaves: Leaves, names: dict[str, str]) -> None:
    denominator = float(arrays["out_denom"])
    for theirs, ours in names.items():
        found = terms.sums[ours].item() / denominator
        assert found == pytest.approx(float(arrays[f"out_{theirs}"]), rel=VALUE, abs=1e-7), theirs
    loss = terms.loss / denominator
    assert loss.item() == pytest.approx(float(arrays["out_total"]), rel=VALUE)
    loss.backward()
    check_gradients(arrays, "grad_", leaves)


@pytest.mark.parametrize("path", files("dskd"))
def test_dskd(path: Path) -> None:
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    teacher = replace(teacher, pairing=None)
    method = build("dskd", **settings_of(meta))
    leaves |= with_projectors(method, arrays, student, teacher)
    check(arrays, method(student, teacher, Clock()), leaves, LOGGED)


@pytest.mark.parametrize("path", files("dskd_cma"))
def test_dskd_cma(path: Path) -> None:
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    method = build("dskd_cma", std_scope="padded", **settings_of(meta))
    leaves |= with_projectors(method, arrays, student, teacher)
    terms = method(embedded(arrays, "stu", student), embedded(arrays, "tea", teacher), Clock())
    check(arrays, terms, leaves, {**LOGGED, "t2s_acc": "t2s_accuracy"})


def by_heads(arrays: dict[str, Tensor], meta: dict[str, Any], objective: str, *, shared: bool) -> DualSpaceByHeads:
    """DSKD-v2 whose maps are made from the file's shared tokens; `shared`: both sides have the same ids."""
    hp = meta["hp"]
    kd_weight = hp.get("kd_rate", hp.get("kd_ratio"))
    method = build("dskd_v2", parity=True, temperature=hp["kd_temperature"], kd_weight=kd_weight, divergence=objective)
    assert isinstance(method, DualSpaceByHeads)
    heads = (Head(arrays[f"in_{who}_lm_head"]) for who in ("stu", "tea"))
    ours, theirs = (arrays[f"in_overlap_{who}"].numpy() for who in ("stu", "tea"))
    if "in_stu_overlap_ids" in arrays:  # KDFlow leaves out the pair of ends here
        kept = np.isin(ours, arrays["in_stu_overlap_ids"].numpy())
        ours, theirs = ours[kept], theirs[kept]
    method.by_tokens(*heads, ours, theirs, None if shared else names_of(meta))
    return method


def names_of(meta: dict[str, Any]) -> Any:
    """The student's id of every teacher token of the same name, -1 where there is none."""
    ids = {name.replace("Ġ", "▁"): at for at, name in enumerate(meta["student_vocab"])}
    found = np.array([ids.get(name.replace("Ġ", "▁"), -1) for name in meta["teacher_vocab"]])
    found[meta["teacher_eos"]] = meta["student_eos"]
    return found


def by_name(meta: dict[str, Any], student: Predictions, teacher: Predictions) -> Pairing:
    """Exact token alignment within every example of `sequence`, by the names of the tokens."""
    sides = ((meta["student_vocab"], student), (meta["teacher_vocab"], teacher))
    ends = {meta["student_vocab"][meta["student_eos"]], meta["teacher_vocab"][meta["teacher_eos"]]}
    rows = [np.bincount(side.sequence.numpy()).tolist() for _, side in sides]
    found, starts = [], [0, 0]
    for example in range(len(rows[0])):
        names = [[words[label] for label in side.labels[side.sequence == example]] for words, side in sides]
        found += [(i + starts[0], j + starts[1]) for i, j in exact_pairs(*names, ends)]
        starts = [start + side[example] for start, side in zip(starts, rows, strict=True)]
    one = Alignment.one_to_one(*np.array(found).T)
    return Pairing.of((one.student_index, one.student_bounds), (one.teacher_index, one.teacher_bounds), *rows)


@pytest.mark.parametrize("kind", ["same", "eta"])
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_dskd_v2(case: str, kind: str) -> None:
    path = GOLDEN / f"dskdv2_{kind}_{case}.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    method = by_heads(arrays, meta, meta["hp"]["kd_objective"], shared=kind == "same")
    weight = method.projectors["t2s"].weight
    torch.testing.assert_close(weight.detach(), arrays["in_t2s_proj"], rtol=1e-4, atol=1e-5)
    assert isinstance(weight, Tensor)
    leaves["t2s_proj"] = weight
    terms = method(
        student, replace(teacher, pairing=None if kind == "same" else by_name(meta, student, teacher)), Clock()
    )
    check(arrays, terms, leaves, LOGGED)


@pytest.mark.parametrize("objective", ["kl", "rkl"])
@pytest.mark.parametrize("path", files("kdflow"))
def test_kdflow(path: Path, objective: str) -> None:
    """KDFlow's dskd with exact token alignment, at its first step, when its copy of the head is the head."""
    arrays, meta = load(path)
    hidden = arrays["in_stu_hidden"].clone().requires_grad_()
    sides = []
    for who in ("stu", "tea"):
        mask = arrays[f"in_{who}_loss_mask"]
        rows = hidden[mask] if who == "stu" else arrays["in_tea_hidden_masked"]
        labels = arrays[f"in_{who}_input_ids"].roll(-1, 1)[mask]
        sides.append(Predictions(rows, Head(arrays[f"in_{who}_lm_head"]), labels, mask.nonzero()[:, 0]))
    # KDFlow aligns the batch as one text.
    student, teacher = (replace(side, sequence=torch.zeros_like(side.sequence)) for side in sides)
    method = by_heads(arrays, meta, {"kl": "forward_kl", "rkl": "reverse_kl"}[objective], shared=False)
    terms = method(student, replace(teacher, pairing=by_name(meta, student, teacher)), Clock())
    denominator, name = float(arrays["in_avg_token_num"]), f"dskd_eta_{objective}"
    for theirs, ours in {**LOGGED, "ce_loss": "ce"}.items():
        if (expected := arrays.get(f"out_{name}_{theirs}")) is not None:
            assert terms.sums[ours].item() / denominator == pytest.approx(float(expected), rel=VALUE, abs=1e-7), theirs
    (terms.loss / denominator).backward()
    weight = method.projectors["t2s"].weight.grad
    for found, wanted in ((hidden.grad, f"grad_stu_hidden_{name}"), (weight, f"grad_t2s_proj_{name}")):
        expected = arrays[wanted]
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=GRADIENT, atol=GRADIENT * expected.abs().max().item())
