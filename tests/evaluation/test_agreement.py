"""`evaluate agreement`: every figure against whole softmaxes, and what is kept, used again and refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse import adapters, cli, report, store
from stillhouse.evaluation.agreement import agreement
from stillhouse.evaluation.agreement.figures import entry_of, measures_of
from stillhouse.evaluation.agreement.held_out import HeldOut
from stillhouse.evaluation.agreement.pair import Pair
from stillhouse.evaluation.agreement.reading import Reading
from stillhouse.evaluation.agreement.reliability import binned, calibration
from stillhouse.evaluation.agreement.rows import Reader, alone
from stillhouse.evaluation.measures import read_measures
from stillhouse.head import Blocks
from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import AgreementOptions
from tests import toy
from tests.evaluation import agreement_twin as dense

# What another tokenizer has learnt: words that the student's has not.
OTHER_TEXTS = ("An answering machine is whatever", "plush places are pleased", "The rest is a question of times") * 3
SMALL_BLOCKS = Blocks(rows=3, elements=700)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with a padded vocabulary, a teacher with its tokenizer, one with another, and seven rows."""
    folder = tmp_path_factory.mktemp("agreeing")
    toy.write_model(folder / "student", 1, padded=20, sharp=12.0)
    toy.write_model(folder / "teacher", 2, hidden=24, layers=2, padded=4, sharp=9.0)
    toy.write_model(folder / "foreign", 3, hidden=24, entries=310, padded=12, sharp=9.0, texts=OTHER_TEXTS)
    toy.write_rows(folder / "rows.jsonl", 7)
    return folder


def options(world: Path, teacher: str = "teacher", **others: Any) -> AgreementOptions:
    settings: dict[str, Any] = {
        "model": str(world / "student"), "teacher": str(world / teacher), "data": [str(world / "rows.jsonl")],
        "template": "short", "max_length": 96, "max_prompt_length": 48, "batch_size": 3, **others,
    }  # fmt: skip
    return AgreementOptions(**settings)


class Case:
    """Both models in fp64, unless told otherwise, before one data file."""

    def __init__(self, asked: AgreementOptions, dtype: torch.dtype = torch.float64) -> None:
        self.options, self.pair = asked, Pair.of(asked)
        self.held = HeldOut.read(asked.sources[0], self.pair, asked)
        self.models = [load_causal_lm(name).to(dtype) for name in (asked.model, asked.teacher)]  # pyright: ignore[reportArgumentType]
        readers = Reader(self.models[0], len(self.pair.student)), Reader(self.models[1], len(self.pair.teacher))
        self.reading = Reading(self.pair, readers, asked.temperature, asked.top_k, asked.bins)

    def lines(self, batch_size: int = 3, blocks: Blocks | None = None) -> list[dict[str, Any]]:
        return list(replace(self.reading, blocks=blocks).lines(self.held, batch_size))


CASES: dict[str, dict[str, Any]] = {
    "shared ids": {},
    "shared ids, warmer": {"temperature": 2.0, "top_k": 3, "bins": 4},
    "another template": {"teacher_template": "alpaca", "top_k": 1},
    "another tokenizer": {"teacher": "foreign"},
    "exact, nearest strings": {
        "teacher": "foreign", "alignment": {"name": "exact"}, "vocabulary": {"name": "min_edit"}, "temperature": 0.7,
    },
    "the first of several": {"teacher": "foreign", "vocabulary": {"name": "min_edit", "many": "first"}},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_figure_is_that_of_whole_softmaxes(world: Path, name: str) -> None:
    case = Case(options(world, **CASES[name]))
    asked = case.options
    twin = dense.read(case.held, case.pair, case.models, asked.temperature)
    lines = case.lines(blocks=SMALL_BLOCKS)
    found, wanted = dense.flat(entry_of(lines, asked.bins)), dense.figures(twin, asked.top_k, asked.bins)
    assert found.keys() == wanted.keys()
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert 0 < wanted["topk"] < 100 and wanted["forward_kl"] > 0, "else the test shows little"
    measures = {measure.name: measure.per_item[0] for measure in measures_of("rows", lines, asked.top_k)}
    for title, key in (("forward KL", "forward_kl"), ("reverse KL", "reverse_kl"), ("JSD", "jsd"), ("TVD", "tvd")):
        means = [fmean(dense.divergences(row)[key] for row in rows) for rows in twin.examples]
        assert measures[f"rows {title}"] == pytest.approx(means, rel=1e-9, abs=1e-9)
    shares = [fmean(dense.agreements(row, asked.top_k)["topk"] for row in rows) for rows in twin.examples]
    assert measures[f"rows top-{asked.top_k} overlap"] == pytest.approx(shares, rel=1e-9)


def test_the_cases_differ_where_they_should(world: Path) -> None:
    summed, first = (Case(options(world, **CASES[name])) for name in ("another tokenizer", "the first of several"))
    assert summed.pair.compared is not None and first.pair.compared is not None
    assert summed.pair.width < first.pair.width, "the nearest strings reach more"
    assert (first.pair.compared.teacher == 0).any(), "of several that go to one only the first is read"
    spans, exact = (Case(options(world, **CASES[name])) for name in ("another tokenizer", "exact, nearest strings"))
    counts = [entry_of(case.lines(), 15)["compared"] for case in (spans, exact)]
    assert counts[0] > counts[1] > 0


@pytest.mark.parametrize(("teacher", "dtype", "tight"), [
    ("teacher", torch.float64, 1e-9), ("foreign", torch.float64, 1e-9), ("foreign", torch.float32, 2e-6),
])  # fmt: skip
def test_neither_batches_nor_blocks_matter(world: Path, teacher: str, dtype: torch.dtype, tight: float) -> None:
    case = Case(options(world, teacher), dtype)
    one, other = case.lines(1, SMALL_BLOCKS), case.lines(7)
    for left, right in zip(one, other, strict=True):
        assert left["origin"] == right["origin"] and left["compared"] == right["compared"]
        for part in ("student", "teacher", "sums"):
            assert left[part] == pytest.approx(right[part], rel=tight, abs=10 * tight)
    entries = [dense.flat(entry_of(lines, 15)) for lines in (one, other)]
    assert entries[0] == pytest.approx(entries[1], rel=tight, abs=10 * tight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_agrees_with_itself(world: Path, dtype: torch.dtype) -> None:
    case = Case(options(world, "student"), dtype)
    entry = entry_of(case.lines(), 15)
    for name in ("forward_kl", "reverse_kl", "jsd", "tvd"):
        assert entry[name] == pytest.approx(0, abs=1e-6)
    assert [entry[name] for name in ("top1", "topk", "found")] == [100, 100, 100]
    assert entry["student"] == entry["teacher"]
    assert entry["calibration"]["teacher"]["error"] == pytest.approx(0, abs=1e-7)
    assert entry["calibration"]["labels"]["error"] > 0.01


@pytest.mark.parametrize("name", ["shared ids", "another tokenizer", "exact, nearest strings"])
def test_bits_a_byte_are_over_the_bytes_of_the_responses(world: Path, name: str) -> None:
    case = Case(options(world, **CASES[name]))
    lines = case.lines()
    entry = entry_of(lines, 15)
    bytes_of = [len(row["output"].encode()) + 1 for row in toy.rows(7)]  # what ends it is one of its own
    for who in ("student", "teacher"):
        assert [line[who]["bytes"] for line in lines] == bytes_of
        bits = sum(line[who]["nll"] for line in lines) / math.log(2) / sum(bytes_of)
        assert entry[who]["bits_per_byte"] == pytest.approx(bits)
    assert entry["student"]["tokens"] == entry["teacher"]["tokens"] or case.pair.map is not None


def test_bytes_that_are_unknown_count_on_neither_side_of_the_division(world: Path, tmp_path: Path) -> None:
    """A chat template that rewrites its responses: they have no spans, and only the others tell bits a byte."""
    text = "{% for m in messages %}{{ m['content'] | replace('7', 'seven') }}<eos>{% endfor %}"
    tokenizer = toy.tokenizer()
    tokenizer.chat_template = text
    folder = Path(toy.write_model(tmp_path / "chat", 1, sharp=12.0))
    tokenizer.save_pretrained(folder)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "it is 7."}\n{"prompt": "b", "completion": "it is 4."}\n')
    asked = options(world, model=str(folder), teacher=str(folder), data=[str(path)], template="chat")
    lines = Case(asked).lines()
    assert [line["student"]["bytes"] for line in lines] == [0, 9]
    assert lines[0]["student"]["spanned"] == 0 < lines[0]["student"]["nll"]
    entry = entry_of(lines, 15)
    assert entry["student"]["bits_per_byte"] == pytest.approx(lines[1]["student"]["nll"] / math.log(2) / 9)
    names = [measure.name for measure in measures_of("rows", lines, 5)]
    assert "rows bits per byte" not in names and "rows forward KL" in names


def test_what_is_cut_is_counted(world: Path) -> None:
    whole = Case(options(world, "foreign")).held
    case = Case(options(world, "foreign", max_length=46, max_prompt_length=45))
    counts = case.held.left_out
    for who, side in zip(("student", "teacher"), whole.spans, strict=True):
        assert counts[who]["responses_cut"] == int((side.lengths > 46).sum())
    assert counts["teacher"]["responses_cut"] > counts["student"]["responses_cut"]
    assert whole.left_out["teacher"]["responses_cut"] == counts["examples"] == counts["rows_cut_into_unlike_turns"] == 0
    tokens = [entry_of(one.lines(), 15)["teacher"]["tokens"] for one in (case, Case(options(world, "foreign")))]
    assert tokens[0] < tokens[1]


def test_a_bin_holds_its_lower_edge_and_the_last_one_also_1() -> None:
    confidence = torch.tensor([0.0, 0.25, 0.2499, 1.0, 0.75, 0.5], dtype=torch.float64)
    truth = torch.tensor([0.5, 0.25, 0.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    found = binned(confidence, truth, torch.tensor([0, 0, 0, 1, 1, 1]), 2, 4)
    assert [[(b, n) for b, n, _, _ in one] for one in found] == [[(0, 2), (1, 1)], [(2, 1), (3, 2)]]
    told = calibration(found, 4)
    assert told["error"] == pytest.approx((abs(0.2499 - 0.5) + 0 + 0 + abs(1.75 - 1.0)) / 6)
    assert told["confidence"] == pytest.approx(2.7499 / 6) and told["truth"] == pytest.approx(2.25 / 6)
    assert told["table"][3] == {"from": 0.75, "to": 1.0, "tokens": 2, "confidence": 0.875, "truth": 0.5}
    empty = calibration([[(3, 1, 0.9, 1.0)]], 4)["table"][0]
    assert empty == {"from": 0.0, "to": 0.25, "tokens": 0, "confidence": None, "truth": None}


def test_predictions_that_are_not_finite_are_said(world: Path) -> None:
    case = Case(options(world))
    with torch.no_grad():
        case.models[1].get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(Mistake, match=r"rows\.jsonl:1: a prediction of the teacher is not finite here"):
        case.lines()


def test_the_head_is_applied_in_fp32_whatever_the_weights_are_kept_in(world: Path) -> None:
    case = Case(options(world), torch.bfloat16)
    batch = case.held.collate([case.held.dataset[0]])
    side = case.reading.readers[0].predict(batch)
    logits = side.hidden.float() @ case.models[0].get_output_embeddings().weight[: len(case.pair.student)].float().T
    assert side.hidden.dtype == torch.float32 and side.head.vocabulary == len(case.pair.student)
    found = alone(side, None)
    torch.testing.assert_close(found["confidence"], logits.softmax(-1).amax(-1))
    assert torch.equal(found["likeliest"].long(), logits.argmax(-1))


def command(world: Path, out: Path, *more: str, teacher: str = "teacher", student: str = "student") -> list[str]:
    given = {
        "model": world / student, "teacher": world / teacher, "data": world / "rows.jsonl", "out": out,
        "template": "short", "max_length": 96, "max_prompt_length": 48,
    }  # fmt: skip
    return ["evaluate", "agreement", *(f"--{key}={value}" for key, value in given.items()), *more]


def test_the_command_leaves_everything_and_does_nothing_twice(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(world, tmp_path, teacher="foreign")) == 0
    printed = capsys.readouterr()
    out = tmp_path / "agreement"
    made = store.read_json(out / "agreement.json")
    (entry,) = made["data"].values()
    lines = store.read_jsonl(out / "rows" / "predictions.jsonl")
    assert made["data"] == {"rows": {**entry_of(lines, 15), "left_out": entry["left_out"]}}
    assert [line["origin"].rpartition(":")[2] for line in lines] == [str(at) for at in range(1, 8)]
    assert f"{entry['forward_kl']:.4f}" in printed.out and f"{entry['top1']:.2f}%" in printed.out
    assert "are on tokens that are not compared" in printed.out
    assert "the teacher has a tokenizer of its own" in printed.err
    measures = read_measures(out)
    assert [measure.higher_is_better for measure in measures] == [False] * 5 + [True] * 2
    assert all(len(measure.per_item[0]) == 7 for measure in measures)
    assert (out / "reliability.png").read_bytes()[:4] == b"\x89PNG"

    stamp = (out / "rows" / "predictions.jsonl").stat().st_mtime_ns
    (tmp_path / "same").symlink_to(world / "foreign", target_is_directory=True)
    again = command(world, tmp_path, "--batch_size=2")
    assert cli.main([word if "teacher=" not in word else f"--teacher={tmp_path / 'same'}" for word in again]) == 0
    assert (out / "rows" / "predictions.jsonl").stat().st_mtime_ns == stamp
    assert store.read_json(out / "agreement.json") == {**made, "teacher": str(tmp_path / "same")}
    capsys.readouterr()
    assert cli.main(command(world, tmp_path, "--temperature=2", teacher="foreign")) == 2
    assert "was made with temperature=1.0, now 2.0; give another --out" in capsys.readouterr().err
    assert cli.main(command(world, tmp_path)) == 2
    assert "was made with teacher=" in capsys.readouterr().err


def test_an_adapter_and_a_run_are_models_and_bf16_is_near(world: Path, tmp_path: Path) -> None:
    base = world / "student"
    adapted = adapters.put_new(load_causal_lm(str(base)), {"r": 2, "init_lora_weights": False}, str(base))
    adapted.save_pretrained(tmp_path / "adapter")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("seed: 1\n")
    (run / "epoch1_step3").symlink_to(world / "teacher", target_is_directory=True)
    asked = {"model": str(tmp_path / "adapter"), "out": str(tmp_path / "one")}
    found = agreement(options(world, **{**asked, "teacher": str(run)}))[1]["data"]["rows"]
    plain = agreement(options(world, out=str(tmp_path / "two")))[1]["data"]["rows"]
    assert found["teacher"] == plain["teacher"] and found["student"]["perplexity"] != plain["student"]["perplexity"]
    merged = tmp_path / "merged"
    adapters.merged(adapted).save_pretrained(merged)
    toy.tokenizer().save_pretrained(merged)
    whole = agreement(options(world, model=str(merged), out=str(tmp_path / "three")))[1]["data"]["rows"]
    assert dense.flat(whole) == pytest.approx(dense.flat(found), rel=1e-4)
    halved = options(world, dtype="bfloat16", teacher_dtype="bfloat16", out=str(tmp_path / "four"))
    rounded = agreement(halved)[1]["data"]["rows"]
    assert rounded["forward_kl"] != plain["forward_kl"]
    assert rounded["forward_kl"] == pytest.approx(plain["forward_kl"], rel=0.1)


def test_more_likeliest_tokens_than_are_compared_and_too_long_examples_are_refused(world: Path) -> None:
    with pytest.raises(Mistake, match=r"top_k: is 301, but 300 tokens are compared"):
        agreement(options(world, top_k=301))
    with pytest.raises(Mistake, match=r"max_length: 129 is more than the 128 positions of the student"):
        agreement(options(world, max_length=129))


def test_a_map_that_reaches_nothing_is_refused(world: Path) -> None:
    pair = Pair.of(options(world, "foreign"))
    assert pair.map is not None
    nothing = replace(pair, map=pair.map * 0 - 1)
    with pytest.raises(Mistake, match=r"vocabulary: sends no teacher token"):
        _ = nothing.width


def test_texts_are_equal_where_tokens_say_the_same_or_end_a_text(world: Path) -> None:
    pair = Pair.of(options(world, "foreign"))
    vocabularies = pair.student.get_vocab(), pair.teacher.get_vocab()
    ours, theirs = pair.texts
    assert ours[vocabularies[0]["<eos>"]] == theirs[vocabularies[1]["<eos>"]]
    assert ours[vocabularies[0]["<pad>"]] != theirs[vocabularies[1]["<pad>"]]
    for token in ("a", "\u0120", "\u00c3"):
        assert ours[vocabularies[0][token]] == theirs[vocabularies[1][token]]
    shared = set(vocabularies[0]) & set(vocabularies[1]) - {"<pad>"}
    assert int((ours[:, None] == theirs[None, :]).sum()) == len(shared) < len(ours)


def test_the_picture_shows_the_bins_that_hold_something(world: Path) -> None:
    entry = entry_of(Case(options(world)).lines(), 15)
    figure = report.reliability_picture({"rows": entry, "again": entry})
    assert len(figure.axes) == 2
    diagonal, teacher, labels = figure.axes[0].get_lines()
    for line, kind in ((teacher, "teacher"), (labels, "labels")):
        filled = [one for one in entry["calibration"][kind]["table"] if one["tokens"]]
        assert np.asarray(line.get_xdata()).tolist() == [one["confidence"] for one in filled]
        assert np.asarray(line.get_ydata()).tolist() == [one["truth"] for one in filled]
    assert np.asarray(diagonal.get_xdata()).tolist() == [0, 1]
    assert json.dumps(entry)  # no NaN and no tensor
