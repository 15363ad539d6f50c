"""ALM against tokenkit's numbers: values to 1e-5, gradients to 1e-4, fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.data.pieces import Pieces
from stillhouse.head import Head, Pairing, Predictions
from stillhouse.head.pairing import Groups, joined
from stillhouse.methods import Clock, Method, build
from stillhouse.methods.alm import ApproximateLikelihood
from stillhouse.methods.alm_chunks import Chunks
from stillhouse.methods.pair import TokenizerPair
from tests.golden.cross import GRADIENT, VALUE, files, load

Who = Literal["stu", "tea"]
BOUNDARIES = {
    "none": {"boundary": "none"},
    "append_space": {"boundary": "append"},
    "append_space+eos_as_space": {"boundary": "append", "eos_as_space": True},
    "merge_by_space_prob+append_space": {"boundary": "merge"},
}
STRONG = 1e3  # of KD, so that CE can be subtracted


class Rows:
    """One side: the rows that predict its scored tokens, and one more for what follows the last of each example.

    Ours have no such row in training; with a label of no meaning, and in no group, it stands for tokenkit's.
    """

    def __init__(self, arrays: dict[str, Tensor], who: Who) -> None:
        scored = arrays[f"in_{who}_loss_mask"].bool()
        self.tokens = [mask.nonzero().squeeze(-1) for mask in scored]  # of each example, the scored tokens' places
        self.counts = [len(places) + 1 for places in self.tokens]
        at = [torch.cat([places - 1, places[-1:]]) for places in self.tokens]
        self.logits = arrays[f"in_{who}_logits"].clone().requires_grad_(who == "stu")
        ids = arrays[f"in_{who}_input_ids"]
        labels = [torch.cat([row[places], places.new_zeros(1)]) for row, places in zip(ids, self.tokens, strict=True)]
        sequence = torch.repeat_interleave(torch.tensor(self.counts))
        hidden = torch.cat([row[places] for row, places in zip(self.logits, at, strict=True)])
        head = Head(torch.eye(self.logits.shape[-1]))
        self.predictions = Predictions(hidden, head, torch.cat(labels), sequence)

    def groups(self, arrays: dict[str, Tensor], who: Who, kind: str) -> Groups:
        """The scored rows of every chunk that has any."""
        found = []
        for table, places in zip(arrays[f"in_align_{who}_{kind}"].bool(), self.tokens, strict=True):
            row, chunk = table[places].nonzero().unbind(1)
            found.append((row.numpy(), np.concatenate([[0], np.cumsum(np.unique(chunk, return_counts=True)[1])])))
        return joined(found, self.counts)


def sides(arrays: dict[str, Tensor], kind: str) -> tuple[Rows, Rows, Pairing]:
    student, teacher = Rows(arrays, "stu"), Rows(arrays, "tea")
    ours, theirs = student.groups(arrays, "stu", kind), teacher.groups(arrays, "tea", kind)
    return student, teacher, Pairing.of(ours, theirs, student.counts, teacher.counts)


def by_mask(arrays: dict[str, Tensor], meta: dict[str, Any]) -> TokenizerPair:
    """Tokens that begin with a blank where the released code says so."""
    made = []
    for who, whose in (("stu", "student"), ("tea", "teacher")):
        content = tuple(b" x" if blank else b"x" for blank in arrays[f"in_space_mask_{who}"])
        special = {meta["base"][f"{whose}_eos"]: "eos"}
        made.append(Pieces(("x",) * len(content), content, special, "byte_level", "", frozenset(), False))
    return TokenizerPair(made[0], made[1], len(made[0]), len(made[1]))


def by_strings(meta: dict[str, Any]) -> TokenizerPair:
    """What the strings of byte-level tokenizers stand for, as far as blanks go."""
    made = []
    for who in ("student", "teacher"):
        raw = meta["base"][f"{who}_vocab"]
        content = tuple(t.replace("Ġ", " ").replace("Ċ", "\n").replace("ĉ", "\t").encode() for t in raw)
        special = dict.fromkeys(meta["base"][f"{who}_special_ids"], "eos")
        made.append(Pieces(tuple(raw), content, special, "byte_level", "Ġ", frozenset(), False))
    return TokenizerPair(made[0], made[1], len(made[0]), len(made[1]))


def losses(path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """The names of the numbers in a file, the kind of chunks, and our settings."""
    arrays, meta = load(path)
    found = []
    for key in arrays:
        if key.startswith("out_"):
            kind, boundary, difference = key.removeprefix("out_").split("__")
            cold = difference.endswith("_temp1")
            temperature = 1.0 if cold else meta["binarization_temp"]
            settings = {"difference": difference.removesuffix("_temp1"), "temperature": temperature}
            found.append((key.removeprefix("out_"), kind, {**BOUNDARIES[boundary], **settings}))
    return found


@pytest.mark.parametrize("path", files("alm"))
def test_every_mode(path: Path) -> None:
    arrays, meta = load(path)
    names = losses(path)
    assert names
    for name, kind, settings in names:
        student, teacher, pairing = sides(arrays, kind)
        theirs = Predictions(**{**vars(teacher.predictions), "pairing": pairing})
        strong, weak = (
            method(settings | {"kd_weight": weight}, meta, by_mask(arrays, meta)) for weight in (STRONG, 0.0)
        )
        terms = strong(student.predictions, theirs, Clock())
        count = len(student.predictions)
        assert terms.sums["kd"].item() / count == pytest.approx(float(arrays[f"out_{name}"]), rel=VALUE), name
        expected = arrays.get(f"grad_stu_logits_{name}")
        if expected is not None:
            difference = (terms.loss - weak(student.predictions, theirs, Clock()).loss) / (STRONG * count)
            (gradient,) = torch.autograd.grad(difference, student.logits)
            scale = expected.abs().max().item()
            torch.testing.assert_close(gradient, expected, rtol=GRADIENT, atol=GRADIENT * scale, msg=name)


def method(settings: dict[str, Any], meta: dict[str, Any], tokenizers: TokenizerPair) -> Method:
    made = build("alm", **settings, threshold=meta["threshold"], parity=True)
    made.tokenizers = tokenizers
    return made


@pytest.mark.parametrize("path", files("alm"))
def test_chunks_between_spaces_and_blanks(path: Path) -> None:
    """Ours from the strings of byte-level tokenizers; the released code's from a table."""
    arrays, meta = load(path)
    if not all(any(t.startswith("Ġ") for t in meta["base"][f"{who}_vocab"]) for who in ("student", "teacher")):
        pytest.skip("not both sides' tokens are byte-level")
    tokenizers = by_strings(meta)
    made = method({"chunks": "space", "boundary": "append"}, meta, tokenizers)
    assert isinstance(made, ApproximateLikelihood)
    student, teacher, pairing = sides(arrays, "unconstrained")
    for who, found in zip(("stu", "tea"), made._blanks(student.predictions, teacher.predictions), strict=True):
        assert torch.equal(found, arrays[f"in_space_mask_{who}"].bool())
    theirs = Predictions(**{**vars(teacher.predictions), "pairing": pairing})
    _, _, whole = sides(arrays, "space")
    joined_chunks, given = (
        method({"chunks": kind, "boundary": "append"}, meta, tokenizers)(student.predictions, other, Clock())
        for kind, other in (
            ("space", theirs),
            ("unconstrained", Predictions(**{**vars(teacher.predictions), "pairing": whole})),
        )
    )
    assert joined_chunks.sums["chunks"] == given.sums["chunks"] == len(Chunks.of(whole))
    torch.testing.assert_close(joined_chunks.sums["kd"], given.sums["kd"])
