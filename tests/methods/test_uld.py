"""The three forms of ULD against dense twins, row by row and by autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.head import Blocks, Pairing, Predictions
from stillhouse.methods import Clock, build
from stillhouse.mistakes import Mistake
from tests.methods.two_sides import both, by_position, cross_entropy, example, logits, same, side

COUNTS = [([4, 1, 3], [2, 5, 3]), ([1], [1]), ([2, 3], [6, 1])]
VOCABULARIES = [(13, 17), (17, 13), (9, 9)]


def distances(student: Predictions, teacher: Predictions, pairs: list[tuple[int, int]]) -> list[Tensor]:
    """U of every pair of rows, from a sort of all probabilities."""
    q, p = logits(student).softmax(-1), logits(teacher).detach().softmax(-1)
    width = max(q.shape[-1], p.shape[-1])
    found = []
    for row, other in pairs:
        ranked = [side.sort(dim=-1, descending=True, stable=True).values for side in (q[row], p[other])]
        full = [torch.nn.functional.pad(values, (0, width - len(values))) for values in ranked]
        found.append((full[0] - full[1]).abs().sum())
    return found


def pairs_of(student: list[int], teacher: list[int], without_last: bool) -> list[list[tuple[int, int]]]:
    """By example."""
    starts, found = (0, 0), []
    for n_s, n_t in zip(student, teacher, strict=True):
        count = min(n_s - without_last, n_t)
        found.append([(starts[0] + row, starts[1] + row) for row in range(count)])
        starts = (starts[0] + n_s, starts[1] + n_t)
    return found


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("vocabularies", VOCABULARIES)
@pytest.mark.parametrize("form", ["dskd", "mcw"])
def test_sums_over_the_shorter_response(form, vocabularies, counts) -> None:
    student, teacher = both(*counts, vocabularies)
    pairs = [pair for of_example in pairs_of(*counts, False) for pair in of_example]
    for weight in (None, 0.3):
        kd = torch.stack(distances(student, teacher, pairs)).sum()
        share = {"dskd": 0.5, "mcw": 1.0}[form] if weight is None else weight
        wanted = ((1.0 - share) if form == "dskd" else 1.0) * cross_entropy(student) + share * kd
        method = build("uld", form=form, kd_weight=weight)
        method.blocks = Blocks(rows=2, elements=30)
        terms = method(student, teacher, Clock())
        same(terms.loss, wanted, student)
        torch.testing.assert_close(terms.sums["kd"], kd.detach())
        assert terms.sums["aligned"].item() == len(pairs)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("vocabularies", VOCABULARIES)
def test_the_official_form_is_a_mean_of_means(vocabularies, counts) -> None:
    student, teacher = both(*counts, vocabularies)
    means = [
        torch.stack(distances(student, teacher, pairs)).mean() if pairs else torch.zeros((), dtype=torch.float64)
        for pairs in pairs_of(*counts, True)
    ]
    wanted = cross_entropy(student) + 1.5 * len(student) * torch.stack(means).mean()
    terms = build("uld", form="official")(student, teacher, Clock())
    same(terms.loss, wanted, student, 1e-7)  # weights of rows are fp32


def test_one_tokenizer_pairs_rows_one_by_one() -> None:
    counts = [3, 1, 4]
    student, teacher = both(counts, counts)
    alone = replace(teacher, pairing=None)
    for form in ("dskd", "mcw", "official"):
        method = build("uld", form=form)
        same(method(student, alone, Clock()).loss, method(student, teacher, Clock()).loss, student)


@pytest.mark.parametrize("form", ["dskd", "mcw"])
def test_a_batch_is_the_sum_of_its_examples(form) -> None:
    ours, theirs = [4, 1, 3], [2, 5, 3]
    student, teacher = both(ours, theirs)
    method = build("uld", form=form)
    parts = []
    for index, counts in enumerate(zip(ours, theirs, strict=True)):
        of_teacher = replace(example(teacher, theirs, index), pairing=by_position(*([count] for count in counts)))
        parts.append(method(example(student, ours, index), of_teacher, Clock()).loss)
    same(method(student, teacher, Clock()).loss, torch.stack(parts).sum(), student)


@pytest.mark.parametrize("form", ["dskd", "mcw", "official"])
def test_where_nothing_corresponds_labels_are_learnt(form) -> None:
    """A teacher without a row, and an aligner that found no pair."""
    for theirs in ([0], [3]):
        student, teacher = side(0, [3], 13, 5), side(1, theirs, 17, 7)
        nothing = (np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64))
        paired = replace(teacher, pairing=Pairing.of(nothing, nothing, [3], theirs, "first"))
        terms = build("uld", form=form)(student, paired, Clock())
        same(terms.loss, cross_entropy(student) * (0.5 if form == "dskd" else 1.0), student)
        assert terms.sums["kd"].item() == 0.0


def test_the_highest_ranks_alone_report_their_bound() -> None:
    student, teacher = both([4, 2], [3, 5])
    for form in ("dskd", "mcw", "official"):
        whole = build("uld", form=form)(student, teacher, Clock()).sums
        some = build("uld", form=form, top_k=3)(student, teacher, Clock()).sums
        missing = whole["kd"] - some["kd"]
        assert 0.0 < missing <= some["left_out"]
        assert "left_out" not in whole


@pytest.mark.parametrize("form", ["dskd", "mcw", "official"])
def test_numbers_may_follow_a_schedule(form) -> None:
    student, teacher = both([4, 2], [3, 5])
    ramp = {"schedule": "linear", "start": 0.2, "end": 0.8}
    moving = build("uld", form=form, temperature=ramp, kd_weight=ramp)
    constant = build("uld", form=form, temperature=0.5, kd_weight=0.5)
    same(moving(student, teacher, Clock(5, 10)).loss, constant(student, teacher, Clock()).loss, student)
    assert moving.gauges(Clock(5, 10)) == {"temperature": 0.5, "kd_weight": 0.5}


def test_the_dskd_form_takes_no_weight_above_one() -> None:
    with pytest.raises(Mistake, match="CE has the weight 1 - kd_weight"):
        build("uld", kd_weight=1.5)
    with pytest.raises(Mistake, match="is 2, but"):
        build("uld", kd_weight={"schedule": "linear", "start": 0.5, "end": 2.0})
    build("uld", form="mcw", kd_weight=1.5)
