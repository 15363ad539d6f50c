"""MinED and the overlap of vocabularies against the official numbers: values to 1e-5, gradients to 1e-4, fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.alignment import Alignment
from stillhouse.head import Head, Pairing, Predictions, Translation
from stillhouse.methods import Clock, build
from tests.golden.cross import VALUE, both, check_gradients, counts, files, load


@pytest.mark.parametrize("path", files("mined"))
def test_mined(path: Path) -> None:
    """The official code keeps the first of several teacher tokens: `inv` lists one for each student token."""
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    ids = arrays["in_tea2stu"].numpy()
    translation = Translation.by_map(ids, student.head.vocabulary, "first")
    kept = (translation.source >= 0).nonzero().squeeze(-1)
    assert dict(zip(kept.tolist(), translation.source[kept].tolist(), strict=True)) == dict(
        zip(arrays["in_inv_stu"].tolist(), arrays["in_inv_tea"].tolist(), strict=True)
    )
    method = build("mined", temperature=meta["hp"]["kd_temperature"], kd_weight=meta["hp"]["kd_rate"])
    terms = method(student, replace(teacher, pairing=official_pairs(arrays), translation=translation), Clock())
    denominator = float(arrays["out_denom"])
    assert terms.sums["ce"].item() / denominator == pytest.approx(float(arrays["out_nll_loss"]), rel=VALUE)
    assert terms.sums["kd"].item() / denominator == pytest.approx(float(arrays["out_forward_kl"]), rel=VALUE)
    loss = terms.loss / denominator
    assert loss.item() == pytest.approx(float(arrays["out_total"]), rel=VALUE)
    loss.backward()
    check_gradients(arrays, "grad_", leaves)


def official_pairs(arrays: dict[str, torch.Tensor]) -> Pairing:
    labels = [arrays[f"in_{side}_label"].numpy() != -100 for side in ("stu", "tea")]
    rows = [np.cumsum(scored).reshape(scored.shape) - 1 for scored in labels]  # the row of each scored position
    found = arrays["out_alignment"].numpy()
    at = np.argwhere((found >= 0) & labels[0])
    ours = rows[0][at[:, 0], at[:, 1]]
    theirs = rows[1][at[:, 0], found[at[:, 0], at[:, 1]]]
    one = Alignment.one_to_one(ours, theirs)
    return Pairing.of(
        (one.student_index, one.student_bounds),
        (one.teacher_index, one.teacher_bounds),
        counts(arrays["in_stu_label"]),
        counts(arrays["in_tea_label"]),
    )


@pytest.mark.parametrize("objective", ["kl", "rkl"])
@pytest.mark.parametrize("path", files("kdflow"))
def test_overlap(path: Path, objective: str) -> None:
    """KDFlow's simple_ctkd: the teacher's rows are given for its scored positions alone."""
    arrays, meta = load(path)
    hidden = arrays["in_stu_hidden"].clone().requires_grad_()
    masks = [arrays[f"in_{side}_loss_mask"] for side in ("stu", "tea")]
    sides = []
    for who, mask in zip(("stu", "tea"), masks, strict=True):
        ids = arrays[f"in_{who}_input_ids"]
        labels = ids.roll(-1, 1)[mask]
        rows = hidden[mask] if who == "stu" else arrays["in_tea_hidden_masked"]
        sides.append(Predictions(rows, Head(arrays[f"in_{who}_lm_head"]), labels, mask.nonzero()[:, 0]))
    student, teacher = sides
    tokens = [
        [meta[f"{who}_vocab"][label] for label in side.labels]
        for who, side in zip(("student", "teacher"), sides, strict=True)
    ]
    ends = [meta[key] for key in sorted(key for key in meta if "eos" in key)]
    pairs = exact_pairs(*tokens, {"<|endoftext|>", "</s>", *map(str, ends)})
    one = Alignment.one_to_one(*np.array(pairs).T)
    translation = Translation.by_overlap(arrays["in_overlap_stu"].numpy(), arrays["in_overlap_tea"].numpy())
    groups = (one.student_index, one.student_bounds), (one.teacher_index, one.teacher_bounds)
    pairing = Pairing.of(*groups, masks[0].sum(1).tolist(), masks[1].sum(1).tolist())
    settings = {"temperature": meta["hp"]["kd_temperature"], "kd_weight": meta["hp"]["kd_ratio"]}
    method = build("overlap" if objective == "kl" else "reverse_kl", **settings)
    terms = method(student, replace(teacher, pairing=pairing, translation=translation), Clock())
    denominator = float(arrays["in_avg_token_num"])
    name = f"simple_ctkd_{objective}"
    share = len(pairs) / len(student)
    assert share == pytest.approx(float(arrays[f"out_{name}_align_ratio"]), rel=VALUE)
    assert terms.sums["kd"].item() / denominator == pytest.approx(float(arrays[f"out_{name}_kd_loss"]), rel=VALUE)
    assert terms.sums["ce"].item() / denominator == pytest.approx(float(arrays[f"out_{name}_ce_loss"]), rel=VALUE)
    (terms.loss / denominator).backward()
    expected = arrays[f"grad_stu_hidden_{name}"]
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def exact_pairs(ours: list[str], theirs: list[str], ends: set[str]) -> list[tuple[int, int]]:
    """The two pointers of DSKD-v2: tokens without blanks that are equal where equal text has gone before."""
    i = j = 0
    before, before_theirs = "", ""
    pairs = []
    while i < len(ours) and j < len(theirs):
        a, b = (token.replace("Ġ", "").replace("▁", "") for token in (ours[i], theirs[j]))
        ended = ours[i] in ends and theirs[j] in ends
        if before == before_theirs and (a == b or ended):
            pairs.append((i, j))
            before, before_theirs, i, j = before + a, before_theirs + (a if ended else b), i + 1, j + 1
        elif len(before) > len(before_theirs):
            before_theirs, j = before_theirs + b, j + 1
        elif len(before) < len(before_theirs):
            before, i = before + a, i + 1
        else:
            before, before_theirs, i, j = before + a, before_theirs + b, i + 1, j + 1
    return pairs
