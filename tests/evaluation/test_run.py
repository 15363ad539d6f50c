"""`evaluate`: scores and predictions on disk, what is used again, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from stillhouse import store
from stillhouse.data import read_rows
from stillhouse.data.encode import Limits
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation import Evaluated, evaluate, evaluate_rows, score
from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import EvaluateOptions
from stillhouse.recipe.data_sets import data_name
from stillhouse.rollout import Sampling
from tests.rollout.small import chat_tokenizer, save_model

ROWS: list[dict[str, Any]] = [
    {"instruction": "add", "input": "1 2", "output": "a"},
    {"prompt": "say hi", "completion": ["b", "a b"]},
    {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "ab"}]},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(model: Path, *data: Path, **others: Any) -> EvaluateOptions:
    settings: dict[str, Any] = {
        "template": "short", "max_new_tokens": 9, "seeds": [10, 20, 30], "out": str(data[0].parent / "out"), **others,
    }  # fmt: skip
    return EvaluateOptions(model=str(model), data=[str(path) for path in data], **settings)


def times(folder: Path) -> dict[str, int]:
    """When each file of predictions was written."""
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("predictions.jsonl")}


def test_scores_are_those_of_the_predictions_that_are_kept(saved, data):
    report = evaluate(options(saved, data))
    out = data.parent / "out"
    assert store.read_json(out / "scores.json") == report
    assert report["model"] == str(saved)
    assert report["settings"]["max_new_tokens"] == 9
    assert report["settings"]["seeds"] == [10, 20, 30]
    entry, found, answers = report["data"]["rows"], [], []
    for seed in (10, 20, 30):
        store.verify_folder(out / "rows" / f"seed{seed}")
        lines = store.read_jsonl(out / "rows" / f"seed{seed}" / "predictions.jsonl")
        assert [line["references"] for line in lines] == [["a"], ["b", "a b"], ["ab"]]
        assert lines[0]["prompt"] == "### Instruction:\nadd\n1 2\n\n### Response:\n"
        answers += [line["prediction"] for line in lines]
        found.append(score(answers[-3:], [line["references"] for line in lines]))
        assert entry["rougeL"]["per_seed"][str(seed)] == pytest.approx(found[-1].rouge_l)
        assert 100 * fmean(line["rougeL"] for line in lines) == pytest.approx(found[-1].rouge_l)
        assert entry["exact_match"]["per_seed"][str(seed)] == pytest.approx(found[-1].exact_match)
    assert entry["rows"] == 3
    assert entry["rougeL"]["mean"] == pytest.approx(fmean(scores.rouge_l for scores in found))
    assert entry["rougeL"]["std"] == pytest.approx(stdev(scores.rouge_l for scores in found))
    assert entry["rougeL"]["mean"] > 0, "else the test shows little"
    assert entry["rougeL"]["std"] > 0
    answers = [
        line for seed in (10, 20, 30) for line in store.read_jsonl(out / "rows" / f"seed{seed}" / "predictions.jsonl")
    ]
    assert entry["unfinished"] == sum(len(line["prediction"]) == 9 for line in answers)
    assert entry["empty"] == sum(not line["prediction"].strip() for line in answers)


def test_predictions_are_those_of_a_model_in_memory(saved, data):
    evaluate(options(saved, data))
    tokenizer = load_tokenizer(saved)
    evaluated = evaluate_rows(
        load_causal_lm(str(saved)), tokenizer, read_rows(data), build("short"), Limits(512, 256), Sampling(9),
        seeds=[10, 20, 30], batch_size=32,
    )  # fmt: skip
    for seed, predictions in evaluated.predictions.items():
        kept = store.read_jsonl(data.parent / "out" / "rows" / f"seed{seed}" / "predictions.jsonl")
        assert [prediction.as_line() for prediction in predictions] == kept


def test_what_is_there_is_used_again_without_the_weights(data, tmp_path):
    model = save_model(tmp_path / "model")
    first = evaluate(options(model, data))
    written = times(tmp_path / "out")
    weights = model / "model.safetensors"
    kept = weights.rename(tmp_path / "aside")
    with pytest.raises(Mistake, match=r"safetensors"):
        evaluate(options(model, data))  # another model now: it would have to be loaded
    kept.rename(weights)
    assert evaluate(options(model, data)) == first
    assert times(tmp_path / "out") == written


def test_a_new_seed_or_file_leaves_the_others_alone(saved, data, tmp_path):
    evaluate(options(saved, data, seeds=[10]))
    written = times(tmp_path / "out")
    other = write_rows(tmp_path / "dolly" / "test.jsonl", ROWS[:1])
    report = evaluate(options(saved, data, other, seeds=[10, 20]))
    after = times(tmp_path / "out")
    assert {key: after[key] for key in written} == written
    assert set(after) == {f"{name}/seed{seed}/predictions.jsonl" for name in ("rows", "dolly") for seed in (10, 20)}
    assert list(report["data"]) == ["rows", "dolly"]


@pytest.mark.parametrize("broken", ["flip", "cut", "gone"])
def test_broken_predictions_are_made_anew_and_it_is_said(saved, data, tmp_path, capsys, broken):
    first = evaluate(options(saved, data, seeds=[10, 20]))
    written = times(tmp_path / "out")
    file = tmp_path / "out" / "rows" / "seed20" / "predictions.jsonl"
    content = file.read_bytes()
    if broken == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-40] if broken == "cut" else bytes([content[0] ^ 4]) + content[1:])
    capsys.readouterr()
    assert evaluate(options(saved, data, seeds=[10, 20])) == first
    assert file.read_bytes() == content
    said = capsys.readouterr().err
    assert "corrupt" in said
    assert "answered anew" in said
    assert times(tmp_path / "out")["rows/seed10/predictions.jsonl"] == written["rows/seed10/predictions.jsonl"]


def test_another_model_or_other_rows_at_the_same_place_are_answered_anew(data, tmp_path, capsys):
    model = save_model(tmp_path / "model")
    first = evaluate(options(model, data, seeds=[10]))
    save_model(tmp_path / "model", seed=1)
    second = evaluate(options(model, data, seeds=[10]))
    assert "was made with another model: answered anew" in capsys.readouterr().err
    assert first["data"] != second["data"]
    write_rows(data, ROWS[1:])
    assert evaluate(options(model, data, seeds=[10]))["data"]["rows"]["rows"] == 2
    assert "was made with another data: answered anew" in capsys.readouterr().err


def test_a_model_is_the_same_by_another_path_and_another_one_is_not(data, tmp_path):
    model = save_model(tmp_path / "model")
    evaluate(options(model, data, seeds=[10]))
    before = times(tmp_path / "out")
    evaluate(options(model.rename(tmp_path / "moved"), data, seeds=[10]))
    assert times(tmp_path / "out") == before
    with pytest.raises(Mistake) as caught:
        evaluate(options(save_model(tmp_path / "other", seed=1), data, seeds=[10]))
    assert caught.value.wrong.startswith("was made with model=")


def test_predictions_of_other_settings_are_replaced_only_if_told(saved, data, tmp_path):
    evaluate(options(saved, data, seeds=[10]))
    before = times(tmp_path / "out")
    with pytest.raises(Mistake) as caught:
        evaluate(options(saved, data, seeds=[10], max_new_tokens=5))
    assert caught.value.wrong == "was made with max_new_tokens=9, now 5"
    assert "--overwrite=true" in caught.value.mend
    assert times(tmp_path / "out") == before
    evaluate(options(saved, data, seeds=[10], max_new_tokens=5, overwrite=True))
    assert times(tmp_path / "out") != before


def test_greedy_answers_are_made_once(saved, data, capsys):
    report = evaluate(options(saved, data, temperature=0))
    assert report["settings"]["seeds"] == [10]
    assert report["data"]["rows"]["rougeL"]["std"] is None
    assert "temperature 0: every seed gives the same answers, only 10 is used" in capsys.readouterr().err


def test_the_table_is_plain_where_nobody_watches(saved, data, capsys):
    evaluate(options(saved, data))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["data", "rows", "ROUGE-L", "exact", "match", "empty", "unfinished", "clipped", "cut"]
    assert lines[1].split()[:2] == ["rows", "3"]
    assert len(lines) == 2
    assert "\x1b" not in "".join(lines)


def test_scores_go_into_the_models_folder_or_beside_a_checkpoint(data, tmp_path):
    model = save_model(tmp_path / "model")
    evaluate(options(model, data, out=None, seeds=[10]))
    assert (model / "evaluation" / "scores.json").is_file()
    with store.write_folder(tmp_path / "run" / "last") as folder:
        save_model(folder)
    evaluate(options(tmp_path / "run" / "last", data, out=None, seeds=[10]))
    assert (tmp_path / "run" / "evaluation" / "scores.json").is_file()
    store.verify_folder(tmp_path / "run" / "last")


def test_cut_prompts_and_clipped_answers_are_counted(saved, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{"instruction": "a" * 80, "output": "x"}, ROWS[0]])
    entry = evaluate(options(saved, data, max_prompt_length=60, max_length=62))["data"]["rows"]
    assert (entry["cut"], entry["clipped"]) == (1, 3)


def test_limit_takes_the_first_rows(saved, data, tmp_path):
    assert evaluate(options(saved, data, limit=2, seeds=[10]))["data"]["rows"]["rows"] == 2
    lines = store.read_jsonl(tmp_path / "out" / "rows" / "seed10" / "predictions.jsonl")
    assert [line["references"] for line in lines] == [["a"], ["b", "a b"]]


def test_a_chat_model_stops_at_the_end_of_its_turn(data, tmp_path):
    model = save_model(tmp_path / "model", tokenizer=chat_tokenizer(), writes=["a", "<|im_end|>"])
    entry = evaluate(options(model, data, template="chat", max_new_tokens=60))["data"]["rows"]
    assert entry["unfinished"] == 0


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/dolly/test.jsonl", "dolly"),
        ("dolly/valid.jsonl", "dolly"),
        ("data/dolly.jsonl", "dolly"),
        ("data/my.test.jsonl", "my.test"),
        ("owner/name", "name"),
        ("/test.jsonl", "test"),
    ],
)
def test_names_of_data_sets(path, name):
    assert data_name(path) == name


@pytest.mark.parametrize(
    ("rows", "changes", "wrong"),
    [
        ([{"instruction": "a"}], {}, "has no response to compare an answer with"),
        ([{"text": "a"}], {}, "a {text} row has no prompt to answer"),
        (ROWS, {"no_repeat_ngram_size": 1}, "must be 0 (off) or at least 2, got 1"),
    ],
)
def test_mistakes_are_found_before_the_weights_are_read(tmp_path, rows, changes, wrong):
    (save_model(tmp_path / "model") / "model.safetensors").unlink()
    with pytest.raises(Mistake) as caught:
        evaluate(options(tmp_path / "model", write_rows(tmp_path / "rows.jsonl", rows), **changes))
    assert caught.value.wrong == wrong


def test_two_files_of_one_name_are_refused(saved, tmp_path):
    files = [write_rows(tmp_path / folder / "dolly.jsonl", ROWS) for folder in ("a", "b")]
    with pytest.raises(Mistake) as caught:
        evaluate(options(saved, *files))
    assert caught.value.wrong == f"is called 'dolly' as {files[0]} is"


def test_a_model_from_the_hub_needs_a_place_for_its_scores(data):
    with pytest.raises(Mistake, match="'owner/name' is not a folder"):
        evaluate(options(Path("owner/name"), data, out=None))


def test_training_goes_on_as_if_nothing_had_been_evaluated(saved, data):
    model = load_causal_lm(str(saved)).train()
    state = torch.get_rng_state()
    evaluated = evaluate_rows(
        model, load_tokenizer(saved), read_rows(data), build("short"), Limits(512, 256), Sampling(9),
        seeds=[10, 20], batch_size=2,
    )  # fmt: skip
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(evaluated, Evaluated)
    assert list(evaluated.per_seed) == [10, 20]
    assert evaluated.rouge_l == fmean(scores.rouge_l for scores in evaluated.per_seed.values())
    assert evaluated.exact_match == fmean(scores.exact_match for scores in evaluated.per_seed.values())
