"""Two tokenisations side by side: paired, kept on disk, read again, and laid out in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.alignment import span
from stillhouse.data.collate import Collator, PackingCollator
from stillhouse.data.dataset import EncodedDataset
from stillhouse.data.encode import Limits
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.head import Pairing
from stillhouse.methods.mcw_costs import EditCosts
from stillhouse.paired import PairedCollator, PairedDataset
from stillhouse.recipe import parse
from stillhouse.training.arguments import training_arguments
from stillhouse.training.kept import kept_or_made, key_of
from stillhouse.training.preflight import tokenizers_of
from stillhouse.training.prepare import prepare
from stillhouse.training.two_tokenizers import TwoTokenizers
from tests import toy


def encodings(samples: list[int], lengths: list[int], seed: int) -> EncodedDataset:
    """One response of `lengths` tokens each after two of prompt; every token of the response is two bytes wide."""
    generator = np.random.default_rng(seed)
    total = sum(length + 2 for length in lengths)
    scored = np.concatenate([np.r_[False, np.ones(length, bool), False] for length in lengths])
    ends = np.concatenate([np.r_[-1, -1, 2 * np.arange(1, length + 1)] for length in lengths]).astype(np.int32)
    offsets = np.cumsum([0, *(length + 2 for length in lengths)]).astype(np.int64)
    origins = [f"rows:{sample}" for sample in samples]
    return EncodedDataset(
        generator.integers(1, 9, total).astype(np.int32), scored, offsets, np.array(samples), origins, ends
    )


def test_only_examples_of_both_sides_are_kept_and_the_others_said() -> None:
    paired = PairedDataset.of(encodings([0, 1, 3], [3, 2, 4], 1), encodings([1, 2, 3], [4, 1, 4], 2), span, "span")
    assert paired.samples.tolist() == paired.teacher.samples.tolist() == [1, 3]
    assert "2 examples are cut away on one side and left out: rows:0" in paired.said[0]
    item = paired[1]
    assert item["sample"] == item["teacher"]["sample"] == 3
    assert item["alignment"].groups() == [([at], [at]) for at in range(4)]
    assert paired[0]["alignment"].groups() == [([0], [0]), ([1], [1])]


def test_a_batch_has_the_groups_of_its_items_as_rows_of_the_batch() -> None:
    paired = PairedDataset.of(encodings([0, 1], [3, 2], 1), encodings([0, 1], [4, 5], 2), span, "span")
    for student, teacher in ((Collator(0), Collator(0)), (PackingCollator(), PackingCollator())):
        batch = PairedCollator(student, teacher, "first")([paired[1], paired[0]])
        pairing = Pairing(**batch["pairing"])
        assert pairing.student_counts == (2, 3) and pairing.teacher_counts == (5, 4)
        assert pairing.student_index.tolist() == [0, 1, 2, 3, 4]
        assert pairing.teacher_index.tolist() == [0, 1, 5, 6, 7]
        assert len(batch["scored_at"]) == 5 and len(batch["teacher"]["scored_at"]) == 9


def test_edits_are_found_between_the_tokens_that_a_batch_predicts_after() -> None:
    paired = PairedDataset.of(encodings([0, 1], [3, 2], 1), encodings([0, 1], [4, 5], 2), span, "span")
    edits = EditCosts(["a" * index for index in range(9)], ["a" * index for index in range(9)])
    for student, teacher in ((Collator(0), Collator(0)), (PackingCollator(), PackingCollator())):
        batch = PairedCollator(student, teacher, "first", edits)([paired[1], paired[0]])
        pairing = Pairing(**batch["pairing"])
        counts = (pairing.student_counts, pairing.teacher_counts)
        sides = zip((batch, batch["teacher"]), counts, strict=True)
        ours, theirs = (side["input_ids"].flatten()[side["scored_at"]].split(list(rows)) for side, rows in sides)
        expected = [edits(s.numpy(), t.numpy()) for s, t in zip(ours, theirs, strict=True)]
        assert pairing.edits is not None and all(map(torch.equal, pairing.edits, expected))
        assert all(len(paths) for paths in pairing.edits)
        assert PairedCollator(student, teacher, "first")([paired[0]])["pairing"]["edits"] is None


def test_without_an_aligner_the_rows_of_every_example_are_known_all_the_same() -> None:
    paired = PairedDataset.of(encodings([0, 1], [3, 2], 1), encodings([0, 1], [4, 5], 2), None, "entropy_dtw")
    pairing = Pairing(**PairedCollator(Collator(0), Collator(0), "mean")([paired[0], paired[1]])["pairing"])
    assert len(pairing) == 0 and pairing.rest.tolist() == [0, 1, 2, 3, 4]
    assert pairing.student_counts == (3, 2) and pairing.teacher_counts == (4, 5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


@pytest.mark.parametrize("align", [span, None])
def test_what_is_kept_is_what_was_made(align: Any, cache: Path) -> None:
    made = PairedDataset.of(encodings([0, 1], [3, 2], 1), encodings([0, 1], [4, 5], 2), align, "span")
    calls = []

    def make() -> PairedDataset:
        calls.append(1)
        return made

    first, again = kept_or_made("k", make), kept_or_made("k", make)
    assert len(calls) == 1 and first is made
    assert again.said == made.said and again.origins == made.origins
    for index in range(2):
        ours, theirs = again[index], made[index]
        assert ours.keys() == theirs.keys()
        for item, other in ((ours, theirs), (ours["teacher"], theirs["teacher"])):
            for name in ("input_ids", "scored", "ends"):
                np.testing.assert_array_equal(item[name], other[name])
        if align is not None:
            assert ours["alignment"].groups() == theirs["alignment"].groups()


def test_a_damaged_file_is_said_and_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = PairedDataset.of(encodings([0], [3], 1), encodings([0], [4], 2), span, "span")
    kept_or_made("k", lambda: made)
    path = cache / "k.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    calls = []
    kept_or_made("k", lambda: calls.append(1) or made)
    assert calls == [1]
    kept_or_made("k", lambda: calls.append(2) or made)
    assert calls == [1]  # it is whole again


def test_the_key_depends_on_everything() -> None:
    one, other = toy.tokenizer(), toy.tokenizer(280)
    base: tuple[Any, ...] = ((one, other), "alpaca", {"name": "span"}, np.arange(3), [("rows:1", {"text": "a"})])
    spoken = toy.tokenizer()
    spoken.chat_template = "{{ messages }}"
    changed: list[tuple[Any, ...]] = [
        ((other, one), *base[1:]),
        ((spoken, other), *base[1:]),
        (base[0], "plain", *base[2:]),
        (*base[:2], {"name": "dtw"}, *base[3:]),
        (*base[:3], np.arange(4), base[4]),
        (*base[:4], [("rows:1", {"text": "b"})]),
    ]
    keys = [key_of(*parts) for parts in (base, *changed)]
    assert len(set(keys)) == len(keys)
    assert key_of(*base) == keys[0]


def test_the_second_run_reads_what_the_first_one_made(tmp_path: Path, cache: Path) -> None:
    world = toy.write_world(tmp_path / "world")
    models = [f"--student.model={world / 'small'}", f"--teacher.model={world / 'foreign'}", "--method=forward_kl"]
    data = {"train": world / "train.jsonl", "template": "short", "max_length": 96, "max_prompt_length": 48}
    recipe = parse(
        "distill", [*models, *(f"--data.{key}={value}" for key, value in data.items()), f"--output={tmp_path}"]
    )
    tokenizers, _ = tokenizers_of(recipe)
    assert tokenizers.teacher is not None
    two = TwoTokenizers.of(recipe, tokenizers.student, tokenizers.teacher)
    template = build_template("short", tokenizers.student)
    rows, limits = read_rows(str(world / "train.jsonl")), Limits(96, 48)
    first = two.encoded(recipe, rows, template, limits)
    (path,) = cache.glob("*.npz")
    stamp = path.stat().st_mtime_ns
    again = two.encoded(recipe, rows, template, limits)
    assert path.stat().st_mtime_ns == stamp and again.said == first.said
    two.encoded(recipe, rows[:-1], template, limits)
    assert len(list(cache.glob("*.npz"))) == 2
    trainer = prepare(recipe, tmp_path, tokenizers, training_arguments(recipe)).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    assert torch.equal(batch["sample"], batch["teacher"]["sample"])
