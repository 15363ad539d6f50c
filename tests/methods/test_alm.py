"""ALM next to its definition, chunk by chunk over dense fp64 rows."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.head import Blocks
from stillhouse.methods import Clock, Method, build
from stillhouse.methods.alm import DIFFERENCES
from tests.methods.groups import EXAMPLES, STUDENT, TEACHER, Batch, Group, batch, dense, tokenizers
from tests.methods.rows import both

SMALL = Blocks(rows=3, elements=40, vocabulary_tile=5)
SETTINGS: list[dict[str, Any]] = [
    *(
        {"chunks": chunks, "boundary": boundary}
        for chunks, boundary in product(("unconstrained", "space"), ("none", "append", "merge"))
    ),
    *({"difference": difference, "threshold": 0.5} for difference in DIFFERENCES),
    {"temperature": 1.0, "kd_weight": 3.0, "threshold": 0.6},
]
SPACES = ([i for i in range(STUDENT) if i % 2], [i - 3 for i in range(3, TEACHER) if i % 2] + [TEACHER - 2])
BLANKS = (SPACES[0], [*SPACES[1], TEACHER - 1])


def alm(settings: dict[str, Any]) -> Method:
    method = build("alm", **settings)
    method.tokenizers, method.blocks = tokenizers(), SMALL
    return method


def rest(x: Tensor) -> Tensor:
    return torch.log(-torch.expm1(x))


def distance(name: str, t: Tensor, s: Tensor, temperature: float) -> Tensor:
    a, b = t / temperature, s / temperature
    if name in ("binary_ce", "reverse_binary_kl"):
        a, b = a - 1e-6, b - 1e-6
        if name == "binary_ce":
            return -(a.exp() * b + (1.0 - a.exp()) * rest(b))
        return b.exp() * (b - a) + (1.0 - b.exp()) * (rest(b) - rest(a))
    if name == "binary_kl_temp_limit":
        a, b = t - 1e-6, s - 1e-6
        return (a - b) + a * (b / a).log()
    return {"abs": (t - s).abs(), "abs_exp": (a.exp() - b.exp()).abs(), "joschu_k2": 0.5 * (a - b) ** 2}[name]


def chunks_of(groups: list[Group], ends: tuple[int, int], given: Batch, p: Tensor, now: dict[str, Any]) -> list[Group]:
    """Groups of one example joined; `ends` are where the rows of either side stop."""
    found: list[Group] = []
    ends_before = True
    for at, (s, t) in enumerate(groups):
        found = [*found, (s, t)] if ends_before else [*found[:-1], (found[-1][0] + s, found[-1][1] + t)]
        s_next, t_next = s[-1] + 1, t[-1] + 1
        ends_before = True
        if at + 1 < len(groups) and (groups[at + 1][0][0], groups[at + 1][1][0]) == (s_next, t_next):
            begins = (given.student.labels[s_next], given.teacher.labels[t_next])
            if now["chunks"] == "space":
                ends_before = begins[0] in SPACES[0] and begins[1] in SPACES[1]
            if now["boundary"] == "merge":
                ends_before = ends_before and bool(p[t_next, BLANKS[1]].sum() > now["threshold"])
    return found


def twin(given: Batch, settings: dict[str, Any]) -> tuple[Tensor, int]:
    """The loss, and how many chunks there are."""
    now = {"chunks": "unconstrained", "boundary": "merge", "threshold": 0.1, "difference": "binary_ce"}
    now |= {"temperature": 100.0, "kd_weight": 1.0} | settings
    lq, lp = dense(given.student).log_softmax(-1), dense(given.teacher).detach().log_softmax(-1)
    at = torch.arange(len(lq)), torch.arange(len(lp))
    of_labels = lq[at[0], given.student.labels], lp[at[1], given.teacher.labels]
    kd, count, ends = lq.new_zeros(()), 0, (0, 0)
    for groups, (n_s, n_t, _) in zip(given.groups(), given.examples, strict=True):
        ends = ends[0] + n_s, ends[1] + n_t
        for s_rows, t_rows in chunks_of(groups, ends, given, lp.exp(), now):
            s, t = of_labels[0][s_rows].sum(), of_labels[1][t_rows].sum()
            s_next, t_next = s_rows[-1] + 1, t_rows[-1] + 1
            if now["boundary"] != "none" and s_next < ends[0] and t_next < ends[1]:
                s, t = s + lq[s_next, BLANKS[0]].logsumexp(0), t + lp[t_next, BLANKS[1]].logsumexp(0)
            kd, count = kd + distance(now["difference"], t, s, now["temperature"]), count + 1
    return -of_labels[0].sum() + now["kd_weight"] * kd, count


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_loss_and_gradients_equal_the_definition(settings: dict[str, Any]) -> None:
    given = batch()
    wanted, count = twin(given, settings)
    terms = alm(settings)(given.student, given.teacher, Clock())
    torch.testing.assert_close(terms.loss, wanted, rtol=1e-9, atol=1e-12)
    expected = torch.autograd.grad(wanted, given.leaves)
    for ours, theirs in zip(torch.autograd.grad(terms.loss, given.leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
    assert terms.sums["chunks"] == count
    assert {"ce", "kd", "accuracy", "aligned"} <= terms.sums.keys()


def test_the_settings_do_not_all_come_to_the_same_chunks() -> None:
    given = batch()
    counts = {str(s): twin(given, s)[1] for s in SETTINGS}
    assert len(set(counts.values())) >= 3, counts


def test_a_batch_is_the_sum_of_its_examples() -> None:
    given = batch()
    for settings in SETTINGS:
        method = alm(settings)
        whole = method(given.student, given.teacher, Clock()).loss
        parts = [given.alone(example) for example in range(len(EXAMPLES))]
        loss = sum((method(part.student, part.teacher, Clock()).loss for part in parts), torch.zeros(()))
        torch.testing.assert_close(whole, loss, rtol=1e-10, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize("parity", [False, True])
def test_without_a_group_there_are_only_labels(parity: bool) -> None:
    given = batch([(3, 2, []), (1, 1, [])])
    terms = alm({"parity": parity})(given.student, given.teacher, Clock())
    assert terms.sums["kd"] == 0.0 and terms.sums["chunks"] == 0
    torch.testing.assert_close(terms.loss.detach(), terms.sums["ce"])
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(terms.loss, given.leaves))


def test_one_tokenizer_needs_neither_pairing_nor_tokens() -> None:
    student, teacher = both()
    terms = build("alm", difference="joschu_k2", temperature=1.0)(student, teacher, Clock())
    rows = torch.arange(len(student))
    of_labels = [
        side[rows, student.labels] for side in (dense(student).log_softmax(-1), dense(teacher).log_softmax(-1))
    ]
    kd = 0.5 * (of_labels[0] - of_labels[1].detach()).square().sum()
    torch.testing.assert_close(terms.loss, kd - of_labels[0].sum())


def test_blanks_need_both_tokenizers() -> None:
    given = batch()
    for settings in ({"boundary": "append"}, {"boundary": "none", "chunks": "space"}):
        method = alm(settings)
        method.tokenizers = None
        with pytest.raises(ValueError, match="ALM needs both tokenizers"):
            method(given.student, given.teacher, Clock())


def test_parity_divides_by_the_count_that_tokenkit_takes_twice() -> None:
    """Merged chunks of sizes > 0 are numbered 0, 1, ... and looked for among the chunks of before."""
    given = batch()
    settings = {"threshold": 0.5}
    clean, parity = (alm({**settings, "parity": p})(given.student, given.teacher, Clock()) for p in (False, True))
    p = dense(given.teacher).detach().softmax(-1)
    now = {"chunks": "unconstrained", "boundary": "merge", **settings}
    counted, ends = 0, (0, 0)
    for groups, (n_s, n_t, _) in zip(given.groups(), given.examples, strict=True):
        ends = ends[0] + n_s, ends[1] + n_t
        merged = chunks_of(groups, ends, given, p, now)
        first = [next(i for i, (s, _) in enumerate(groups) if s[0] == chunk[0][0]) for chunk in merged]
        counted += sum(at < len(merged) for at in first)
    assert counted < int(clean.sums["chunks"])
    torch.testing.assert_close(parity.sums["kd"], clean.sums["kd"] * len(given.student) / counted)
