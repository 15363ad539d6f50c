"""No NaN where the official code has one; NaN where the logits have one; and what is said about wrong inputs."""

from __future__ import annotations

import pytest
import torch

from stillhouse.divergence import Rows, build
from stillhouse.mistakes import Mistake
from tests.divergence.twins import SETTINGS, WITH_TEACHER, SomeRows, twin


# With mu = 0 the head is {p > 0}, and which p is 0 is a matter of the dtype.
@pytest.mark.parametrize("gap", [150.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "params"), [(name, p) for name, p in SETTINGS if p.get("mu") != 0.0])
def test_probabilities_that_underflow(name, params, dtype, gap):
    rows = SomeRows.draw(0, 4, 40, dtype=dtype)
    rows.student[:, 3] += gap
    rows.teacher[:2, 7] += gap
    rows.teacher[2:, 3] += gap
    values, gradient = build(name, **params).value_and_gradient(Rows(rows.student, rows.teacher, rows.labels))
    wanted, wanted_gradient = twin(name, params, 1.0, rows)
    torch.testing.assert_close(values.double(), wanted, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=2e-5, atol=2e-6 * max(1.0, gap / 100))


@pytest.mark.parametrize(("name", "params"), SETTINGS)
def test_holes_in_one_row_leave_the_others_as_they_are(name, params):
    rows = SomeRows.draw(1, 4, 70, dtype=torch.float32)
    loss = build(name, **params)
    whole = loss.value_and_gradient(Rows(rows.student, rows.teacher, rows.labels))
    holed = rows.with_holes(1, "either")
    holed.student[1:], holed.teacher[1:] = rows.student[1:], rows.teacher[1:]
    values, gradient = loss.value_and_gradient(Rows(holed.student, holed.teacher, rows.labels))
    assert torch.equal(values[1:], whole[0][1:])
    assert torch.equal(gradient[1:], whole[1][1:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize(("name", "params"), WITH_TEACHER)
def test_a_bad_logit_is_never_hidden(name, params, side, bad):
    rows = SomeRows.draw(2, 3, 20, dtype=torch.float32).with_holes(2, "same")
    getattr(rows, side)[1, rows.labels[1]] = bad
    values, gradient = build(name, **params).value_and_gradient(Rows(rows.student, rows.teacher, rows.labels))
    assert values.isnan().tolist() == [False, True, False]
    assert gradient[[0, 2]].isfinite().all()


def test_the_cross_entropy_of_an_impossible_label_is_infinite():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    values, gradient = build("ce").value_and_gradient(Rows(logits, labels=torch.tensor([1])))
    assert values.item() == torch.inf
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("name", "params"), SETTINGS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (0, 1)])
def test_empty_blocks_and_a_vocabulary_of_one(name, params, shape):
    rows = SomeRows.draw(3, *shape)
    values, gradient = build(name, **params).value_and_gradient(Rows(rows.student, rows.teacher, rows.labels))
    assert values.tolist() == [0.0] * shape[0]
    assert torch.equal(gradient, torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "said"),
    [
        (torch.zeros(2, 3, 4), None, None, "student logits must be floating .N, V., got torch.float32 .2, 3, 4."),
        (torch.zeros(2, 4).long(), None, None, "student logits must be floating"),
        (torch.zeros(2, 0), None, None, "student logits must be floating"),
        (torch.zeros(2, 4), torch.zeros(2, 5), None, "cut both to the shared vocabulary"),
        (torch.zeros(2, 4), None, torch.tensor([1]), "labels must be integers .2., got torch.int64 .1."),
        (torch.zeros(2, 4), None, torch.tensor([1.0, 2.0]), "labels must be integers"),
        (torch.zeros(2, 4), None, torch.tensor([0, 4]), "ids from 0 to 3, got 4 in row 1"),
        (torch.zeros(2, 4), None, torch.tensor([-100, 0]), "got -100 in row 0; drop rows without a label first"),
        (torch.zeros(2, 4), torch.zeros(2, 4), None, "labels .N. are needed"),
    ],
)
def test_wrong_inputs_of_cross_entropy_are_named(student, teacher, labels, said):
    with pytest.raises(ValueError, match=said):
        build("ce")(student, teacher, labels)


@pytest.mark.parametrize(("name", "params"), WITH_TEACHER)
def test_a_missing_teacher_is_named(name, params):
    with pytest.raises(ValueError, match=r"teacher logits .N, V. are needed, got None"):
        build(name, **params)(torch.zeros(2, 4), None, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("todo", {}, "unknown divergence 'todo'; did you mean 'todi'?"),
        ("jsd", {"bta": 0.5}, "bta: unknown setting of jsd 'bta'; did you mean 'beta'?"),
        ("cross_entropy", {"temperature": 2.0}, "temperature: unknown setting of cross_entropy 'temperature'"),
        ("forward_kl", {"temperature": 0.0}, "temperature: must be above 0, got 0.0"),
        ("skew_reverse_kl", {"lam": 1.5}, "lam: must be at least 0 and at most 1, got 1.5"),
    ],
)
def test_a_wrong_name_or_setting_is_a_mistake(name, params, said):
    with pytest.raises(Mistake) as raised:
        build(name, **params)
    assert str(raised.value).startswith(said)
