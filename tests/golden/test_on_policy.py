"""DistiLLM-2's losses and MiniLLM's returns, policy gradient and regulariser against the official numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.head import Predictions, Sampled
from stillhouse.methods import Clock, build
from stillhouse.methods.minillm import returns
from tests.golden.test_methods import CASES, as_predictions, paths

VALUE, GRADIENT = 1e-5, 1e-4
every_case = pytest.mark.parametrize("path", paths(CASES, "case_*.npz"))


def same(ours: Tensor, official: np.ndarray, *, relative: float) -> None:
    """Relative to the largest number of the array."""
    wanted = torch.as_tensor(official)
    torch.testing.assert_close(ours, wanted, rtol=relative, atol=relative * wanted.abs().max().item() + 1e-9)


def sides(
    arrays: dict[str, np.ndarray], kept: Tensor, labels: Tensor, sampled: Sampled
) -> tuple[Tensor, Predictions, Predictions]:
    """The student's logits [B, L, V] as a leaf, and both sides' rows where `kept` [B, L]."""
    leaf = torch.as_tensor(arrays["student_logits"]).requires_grad_()
    sequence = torch.arange(len(kept))[:, None].expand_as(kept)[kept]
    found = []
    for logits in (leaf, torch.as_tensor(arrays["teacher_logits"])):
        side = as_predictions(logits[kept], labels[kept], kept.numel())
        found.append(Predictions(side.hidden, side.head, side.labels, sequence, sampled=sampled))
    return leaf, *found


@every_case
def test_the_losses_of_distillm_2(path: Path) -> None:
    """Row 0 is the teacher's response, row 1 the student's, the others are not used."""
    arrays, checked = dict(np.load(path)), []
    labels = torch.as_tensor(arrays["labels"])
    kept = labels != -100
    kept[2:] = False
    rows = kept.nonzero()[:, 0]
    zeros = torch.zeros(len(rows))
    noted = Sampled(rows == 1, zeros, zeros + 1.0, zeros)
    for key in arrays:
        if not (match := re.fullmatch(r"distillm2\.(\w+)\.loss", key)):
            continue
        leaf, student, teacher = sides(arrays, kept, labels, noted)
        loss = build("distillm2", loss=match[1])(student, teacher, Clock()).loss / 2.0  # two responses
        loss.backward()
        same(loss.detach(), arrays[key], relative=VALUE)
        official = arrays[f"distillm2.{match[1]}.grad"]
        assert leaf.grad is not None
        same(leaf.grad[: len(official)], official, relative=GRADIENT)
        checked.append(match[1])
    assert {"distillm_v2", "distillm_v1", "gkd", "kd", "seqkd", "dpkd"} <= set(checked)


def minillm(arrays: dict[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor, Sampled]:
    """Mask [B, L], each row's response [n], the tokens [B, L], and what was noted of those in the mask."""
    mask = torch.as_tensor(arrays["minillm.mask"]).bool()
    sequence = torch.arange(len(mask))[:, None].expand_as(mask)[mask]
    old, importance, advantage = (
        torch.as_tensor(arrays[f"minillm.{name}"])[mask] for name in ("old_logprobs", "w", "adv_whitened")
    )
    tokens = torch.as_tensor(arrays["minillm.ids"])
    return mask, sequence, tokens, Sampled(torch.ones_like(old).bool(), old, importance, advantage)


@every_case
def test_the_returns_of_minillm(path: Path) -> None:
    """They start at the token itself, and are whitened over padding too, by the unbiased variance."""
    arrays = dict(np.load(path))
    mask, sequence, _, _ = minillm(arrays)
    rewards = torch.as_tensor(arrays["minillm.rewards"])
    found = torch.zeros_like(rewards)
    found[mask] = returns(rewards[mask], sequence, 0.95, from_next=False, length_norm=True)
    same(found, arrays["minillm.adv_raw"], relative=VALUE)
    whitened = (found - found.mean()) * torch.rsqrt(found.var() + 1e-8)
    same(whitened, arrays["minillm.adv_whitened"], relative=VALUE)


@every_case
def test_the_losses_of_minillm(path: Path) -> None:
    """The policy gradient alone, and with the regulariser."""
    arrays = dict(np.load(path))
    mask, _, tokens, noted = minillm(arrays)
    policy, regulariser = (
        (torch.as_tensor(arrays[f"minillm.{name}.loss"]), torch.as_tensor(arrays[f"minillm.{name}.grad"]))
        for name in ("pg", "single_step_reg")
    )
    for single_step in (False, True):
        leaf, student, teacher = sides(arrays, mask, tokens, noted)
        terms = build("minillm", parity=True, single_step=single_step)(student, teacher, Clock())
        loss = terms.loss / mask.sum()
        loss.backward()
        wanted, gradient = (a + b if single_step else a for a, b in zip(policy, regulariser, strict=True))
        same(loss.detach(), wanted.numpy(), relative=VALUE)
        assert leaf.grad is not None
        same(leaf.grad, gradient.numpy(), relative=GRADIENT)
        same(terms.sums["policy"] / mask.sum(), policy[0].numpy(), relative=VALUE)
