"""GOLD against TRL's numbers: values to 1e-5, gradients to 1e-4, fp32, from the scored rows of a batch alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from stillhouse.data.pieces import Pieces
from stillhouse.divergence.gold import divergence
from stillhouse.head import Pairing, Predictions
from stillhouse.head.pairing import joined
from stillhouse.methods import Clock, build
from stillhouse.methods.pair import TokenizerPair
from tests.golden.cross import GRADIENT, VALUE, both, check_gradients, files, load

CONFIGURATIONS = [
    f"ext{extended}_{merge}_hyb{hybrid}"
    for extended in (0, 1)
    for merge in ("observed", "bayesian")
    for hybrid in (0, 1)
]


def pieces(tokens: list[str]) -> Pieces:
    """Strings alone: that is what the released code compares."""
    return Pieces(tuple(tokens), tuple(token.encode() for token in tokens), {}, "characters", "", frozenset(), False)


def by_bytes(arrays: dict[str, Tensor]) -> Pairing:
    """Groups that close where both sides' tokens end at the same byte; the token that ends the text has no width."""
    sides, counts = [], []
    for who in ("stu", "tea"):
        kept = arrays[f"in_{who}_hf_label"] != -100
        sides.append([ends[mask].numpy() for ends, mask in zip(arrays[f"in_{who}_offsets"][..., 1], kept, strict=True)])
        counts.append([int(mask.sum()) for mask in kept])
    groups: tuple[list[Any], list[Any]] = ([], [])
    for ours, theirs in zip(*sides, strict=True):
        common = np.intersect1d(ours, theirs)
        for found, ends in zip(groups, (ours, theirs), strict=True):
            bounds = np.concatenate([[0], np.searchsorted(ends, common) + 1])
            found.append((np.arange(bounds[-1]), bounds))
    return Pairing.of(joined(groups[0], counts[0]), joined(groups[1], counts[1]), counts[0], counts[1])


def case(path: Path, extended: bool) -> tuple[dict[str, Tensor], Predictions, Predictions, dict[str, Tensor], Any]:
    arrays, meta = load(path)
    student, teacher, leaves = both(arrays)
    if extended:
        teacher = replace(teacher, pairing=by_bytes(arrays))
    sides = [pieces(meta[f"{who}_vocab"]) for who in ("student", "teacher")]
    return arrays, student, teacher, leaves, TokenizerPair(sides[0], sides[1], len(sides[0]), len(sides[1]))


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("path", files("gold"))
def test_every_mode(path: Path, name: str) -> None:
    arrays, student, teacher, leaves, tokenizers = case(path, "ext1" in name)
    method = build("gold", merge=name.split("_")[1], hybrid="hyb1" in name, parity=True)
    method.tokenizers = tokenizers
    loss = method(student, teacher, Clock()).loss / len(student)
    assert loss.item() == pytest.approx(float(arrays[f"out_{name}"]), rel=VALUE)
    loss.backward()
    check_gradients(arrays, "grad_", leaves, f"_{name}")


@pytest.mark.parametrize("path", files("gold"))
def test_weights_temperatures_and_cross_entropy(path: Path) -> None:
    """Theirs is KD + CE / 2, ours with kd_weight 2/3 two thirds of that."""
    name = "ext1_observed_hyb1_w"
    arrays, student, teacher, leaves, tokenizers = case(path, True)
    settings = {"matched_weight": 0.7, "unmatched_weight": 0.3, "temperature": 1.5, "teacher_temperature": 2.0}
    method = build("gold", **settings, kd_weight=2.0 / 3.0, parity=True)
    method.tokenizers = tokenizers
    loss = 1.5 * method(student, teacher, Clock()).loss / len(student)
    assert loss.item() == pytest.approx(float(arrays[f"out_{name}"]), rel=VALUE)
    loss.backward()
    check_gradients(arrays, "grad_", leaves, f"_{name}")


@pytest.mark.parametrize("path", files("gold"))
def test_the_parts_of_the_last_example(path: Path) -> None:
    """The released code remembers them of the example that it saw last."""
    for name in (name for name in CONFIGURATIONS if "hyb1" in name):
        arrays, student, teacher, _, tokenizers = case(path, "ext1" in name)
        pairing = teacher.pairing
        assert pairing is not None
        last = alone(student, teacher, len(pairing.student_counts) - 1)
        method = build("gold", merge=name.split("_")[1], parity=True)
        method.tokenizers = tokenizers
        sums = method(*last, Clock()).sums
        for part in ("matched", "unmatched"):
            ours = sums[f"{part}_kd"].item() / len(last[0])
            assert ours == pytest.approx(float(arrays[f"out_{name}_{part}_last"]), rel=VALUE)


def alone(student: Predictions, teacher: Predictions, example: int) -> tuple[Predictions, Predictions]:
    """One example of a batch."""
    pairing = teacher.pairing
    assert pairing is not None
    starts = [sum(counts[:example]) for counts in (pairing.student_counts, pairing.teacher_counts)]
    sizes = pairing.student_counts[example], pairing.teacher_counts[example]
    of_student = np.split(pairing.student_index.numpy(), pairing.student_bounds[1:-1].numpy())
    of_teacher = np.split(pairing.teacher_index.numpy(), pairing.teacher_bounds[1:-1].numpy())
    here = [m for m, rows in enumerate(of_student) if starts[0] <= rows[0] < starts[0] + sizes[0]]
    sides = [
        (np.concatenate([rows[m] - start for m in here]), np.cumsum([0, *(len(rows[m]) for m in here)]))
        for rows, start in zip((of_student, of_teacher), starts, strict=True)
    ]
    made = Pairing.of(sides[0], sides[1], sizes[:1], sizes[1:])
    ours, theirs = (
        side.part(slice(start, start + size))
        for side, start, size in zip((student, teacher), starts, sizes, strict=True)
    )
    return ours, replace(theirs, pairing=made)


@pytest.mark.parametrize("path", files("gold"))
def test_the_generalised_divergence(path: Path) -> None:
    """Theirs is a mean over the rows that have a label, at the temperature 0.9 that TRL has by default."""
    arrays, _ = load(path)
    kept = arrays["in_jsd_labels"] != -100
    student, teacher = ((arrays[f"in_jsd_{side}"][kept] / 0.9).softmax(-1) for side in ("s", "t"))
    checked = 0
    for key in arrays:
        if key.startswith("out_jsd_beta"):
            values, _ = divergence(student.clone(), teacher.clone(), float(key.removeprefix("out_jsd_beta")))
            assert values.mean().item() == pytest.approx(float(arrays[key]), rel=VALUE), key
            checked += 1
    assert checked and GRADIENT > VALUE
