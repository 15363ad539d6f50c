"""`evaluate tasks`: lm-evaluation-harness itself, its own definitions over rows made here, and small real models."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from stillhouse import adapters, cli, store
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation import harness, read_measures, tasks
from stillhouse.evaluation.tasks import PARTS, evaluate_tasks
from stillhouse.mistakes import LONGEST_LINE, Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import TasksOptions
from tests.rollout.small import chat_tokenizer, save_model

SUMS = [{"question": f"{a} + {a}?", "answer": f"Twice {a}.\n#### {2 * a}"} for a in range(1, 31)]
# The model below writes 4 and nothing else.
ASKED = [{"question": "A?", "answer": "So\n#### 4444"}, {"question": "B?", "answer": "So\n#### 5"}] * 2


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def fours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("fours"), writes=("4",))


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("letters"), writes=("a", "b", " "))


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    write(tmp_path / "gsm8k" / "train.jsonl", SUMS)
    return write(tmp_path / "gsm8k" / "test.jsonl", ASKED)


def options(model: Path, data: Path | None, *names: str, **others: Any) -> TasksOptions:
    settings: dict[str, Any] = {"tasks": list(names), "data": None if data is None else str(data), **others}
    return TasksOptions(model=str(model), **settings)


def test_gsm8k_is_the_harness_own_over_local_rows(fours, gsm8k, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # no repository, which git would say
    out = str(tmp_path / "out")
    report = evaluate_tasks(options(fours, gsm8k, "gsm8k", num_fewshot=2, limit=3, max_new_tokens=4, out=out))
    out = tmp_path / "out" / "tasks"
    assert store.read_json(out / "tasks.json") == report
    entry = report["tasks"]["gsm8k"]
    assert (entry["shots"], entry["documents"], entry["of"], entry["version"]) == (2, 3, 4, 3.0)
    assert entry["scores"]["exact_match,flexible-extract"]["value"] == pytest.approx(2 / 3)
    assert entry["scores"]["exact_match,strict-match"] == {"value": 0, "stderr": 0}
    assert entry["scores"]["exact_match,flexible-extract"]["stderr"] == pytest.approx(1 / 3)
    store.verify_folder(out / "gsm8k")
    lines = store.read_jsonl(out / "gsm8k" / "predictions.jsonl")
    assert [line["doc_id"] for line in lines if line["filter"] == "flexible-extract"] == [0, 1, 2]
    assert {str(line["responses"]) for line in lines} == {"[['4444']]"}
    shown = {f"Question: {row['question']}\nAnswer: {row['answer']}" for row in SUMS}
    for line in lines:
        *examples, asked = line["prompts"][0].split("\n\n")
        assert asked == f"Question: {line['doc']['question']}\nAnswer:"
        assert len(set(examples)) == 2
        assert set(examples) <= shown
    measures = {measure.name: measure for measure in read_measures(out)}
    assert measures["gsm8k exact_match (flexible-extract)"].per_item == {1234: [100, 0, 100]}
    said = capfd.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["task", "gsm8k", "gsm8k"]
    assert said.err == f"samples and scores are in {out}\n"


def test_a_seed_changes_the_examples(fours, gsm8k, tmp_path):
    prompts = []
    for seed in (None, 1234, 7):
        out = tmp_path / str(seed)
        given = options(fours, gsm8k, "gsm8k", num_fewshot=2, limit=1, max_new_tokens=4, out=str(out), seed=seed)
        evaluate_tasks(given)
        prompts.append(store.read_jsonl(out / "tasks" / "gsm8k" / "predictions.jsonl")[0]["prompts"])
    assert prompts[0] == prompts[1] != prompts[2]


def test_prompts_longer_than_the_model_are_counted(fours, gsm8k, tmp_path, capsys):
    report = evaluate_tasks(options(fours, gsm8k, "gsm8k", limit=2, max_new_tokens=4, out=str(tmp_path / "out")))
    assert report["tasks"]["gsm8k"]["shots"] == 5
    lengths = [len(line["prompts"][0]) for line in lines_of(tmp_path / "out", "gsm8k")[:2]]
    assert report["tasks"]["gsm8k"]["cut"] == sum(length > 252 for length in lengths)
    report = evaluate_tasks(options(fours, gsm8k, "gsm8k", limit=2, max_new_tokens=200, out=str(tmp_path / "less")))
    assert report["tasks"]["gsm8k"]["cut"] == 2
    assert "2 requests lost the beginning" in capsys.readouterr().err


def lines_of(out: Path, task: str) -> list[dict[str, Any]]:
    return store.read_jsonl(out / "tasks" / task / "predictions.jsonl")


def test_what_is_there_is_not_evaluated_again(fours, gsm8k, tmp_path, monkeypatch, capsys):
    given: dict[str, Any] = {"num_fewshot": 1, "limit": 2, "max_new_tokens": 4, "out": str(tmp_path / "out")}
    first = evaluate_tasks(options(fours, gsm8k, "gsm8k", **given))
    loaded: list[str] = []
    load = tasks.load_author
    monkeypatch.setattr(tasks, "load_author", lambda model, **how: loaded.append(model) or load(model, **how))
    moved = gsm8k.parent.rename(tmp_path / "elsewhere")
    assert evaluate_tasks(options(fours, moved / "test.jsonl", "gsm8k", **given)) == first
    assert not loaded
    with pytest.raises(Mistake, match=r"was made with limit=2, now 3; give another --out"):
        evaluate_tasks(options(fours, moved / "test.jsonl", "gsm8k", **{**given, "limit": 3}))
    evaluate_tasks(options(fours, moved / "test.jsonl", "gsm8k", **{**given, "limit": 3}, overwrite=True))
    assert len(lines_of(tmp_path / "out", "gsm8k")) == 6
    evaluate_tasks(options(fours, moved / "test.jsonl", "gsm8k", **given, overwrite=True))
    loaded.clear()
    write(moved / "train.jsonl", SUMS[::-1])
    evaluate_tasks(options(fours, moved / "test.jsonl", "gsm8k", **given))
    assert loaded == [str(fours)]
    assert "was made with another task: evaluated anew" in capsys.readouterr().err
    file = tmp_path / "out" / "tasks" / "gsm8k" / "result.json"
    file.write_text(file.read_text().replace("1", "2"))
    evaluate_tasks(options(fours, moved / "test.jsonl", "gsm8k", **given))
    assert len(loaded) == 2


CHOICES = [
    {"id": str(i), "question": q, "choices": {"text": texts, "label": ["A", "B", "C"]}, "answerKey": key}
    for i, (q, texts, key) in enumerate(
        [("what", ["a", "b a", "ab"], "A"), ("who", ["aa", "b", "b b b"], "B"), ("a", ["ba", "a b", "a"], "C")]
    )
]


def log_probability(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> float:
    """The slow twin: one answer at a time, without padding."""
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(before) + place - 1, token]) for place, token in enumerate(after))


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_choices_are_scored_by_the_model_loaded_once(kind, letters, tmp_path, monkeypatch):
    folder = letters
    if kind == "adapter":
        (folder := tmp_path / "adapter").mkdir()
        made: Any = load_causal_lm(str(letters), lora={"r": 4, "target_modules": ["c_attn"]}, seed=1)
        torch.manual_seed(0)
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)
        adapters.save(made, folder)
    loaded: list[Any] = []
    load = tasks.load_author
    monkeypatch.setattr(tasks, "load_author", lambda name, **how: loaded.append(load(name, **how)) or loaded[-1])
    data = write(tmp_path / "test.jsonl", CHOICES)
    given = options(folder, data, "arc_easy", num_fewshot=0, batch_size=2, out=str(tmp_path / "out"))
    report = evaluate_tasks(given)
    assert len(loaded) == 1
    model, tokenizer = load_causal_lm(str(folder)), load_tokenizer(str(folder))
    right, normed = [], []
    for line, row in zip(lines_of(tmp_path / "out", "arc_easy"), CHOICES, strict=True):
        texts = row["choices"]["text"]
        assert line["prompts"] == [f"Question: {row['question']}\nAnswer:"]
        assert line["continuations"] == [f" {text}" for text in texts]
        expected = [log_probability(model, tokenizer, line["prompts"][0], f" {text}") for text in texts]
        assert [response[0][0] for response in line["responses"]] == pytest.approx(expected, abs=1e-4)
        best = max(range(3), key=expected.__getitem__)
        right.append(row["choices"]["label"][best] == row["answerKey"])
        lengths = [value / len(text) for value, text in zip(expected, texts, strict=True)]
        normed.append("ABC"[max(range(3), key=lengths.__getitem__)] == row["answerKey"])
    assert report["tasks"]["arc_easy"]["scores"]["acc,none"]["value"] == pytest.approx(fmean(right))
    assert report["tasks"]["arc_easy"]["scores"]["acc_norm,none"]["value"] == pytest.approx(fmean(normed))
    measures = {measure.name: measure.per_item[1234] for measure in read_measures(tmp_path / "out" / "tasks")}
    assert measures["arc_easy acc"] == [100 * found for found in right]
    if kind == "adapter":
        base = load_causal_lm(str(letters))
        others = [
            log_probability(base, tokenizer, "Question: what\nAnswer:", f" {t}") for t in CHOICES[0]["choices"]["text"]
        ]
        first = lines_of(tmp_path / "out", "arc_easy")[0]["responses"]
        assert [response[0][0] for response in first] != pytest.approx(others, abs=1e-2), "the adapter has no say"


CHOICE = {"choices": ["a", "b", "ab", "b a"], "answer": 2, "subject": "s"}
ROWS: dict[str, tuple[str, list[dict[str, Any]], dict[str, str]]] = {
    "arc_challenge": ("arc/arc_challenge.yaml", CHOICES * 9, {"test": "first", "train": "all"}),
    "hellaswag": (
        "hellaswag/hellaswag.yaml",
        [{"activity_label": "x", "ctx_a": "a", "ctx_b": f"b{i}", "endings": ["a", "b", "aa", "bb"], "label": str(i % 4)}
         for i in range(12)],
        {"validation": "first", "train": "all"},
    ),
    "truthfulqa_mc2": (
        "truthfulqa/truthfulqa_mc2.yaml",
        [{"question": "b?", "mc1_targets": {"choices": ["a", "b"], "labels": [1, 0]},
          "mc2_targets": {"choices": ["a", "b a", "b"], "labels": [1, 1, 0]}}] * 3,
        {"validation": "first"},
    ),
    "mmlu_a": ("mmlu/default/mmlu_anatomy.yaml", [{"question": f"q{i}", **CHOICE} for i in range(7)],
               {"test": "first", "dev": "all"}),
    "mmlu_b": ("mmlu/default/mmlu_virology.yaml", [{"question": f"r{i}", **CHOICE, "answer": i % 4} for i in range(7)],
               {"test": "all", "dev": "all"}),
    "winogrande": ("winogrande/default.yaml",
                   [{"sentence": f"The {i} is _ a", "option1": "a", "option2": "bb", "answer": "2"} for i in range(7)],
                   {"validation": "first", "train": "all"}),
    "gsm8k": ("gsm8k/gsm8k.yaml", [{"question": "A?", "answer": "#### 4"}] * 9, {"test": "first", "train": "all"}),
}  # fmt: skip


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own definitions of the leaderboard's tasks over rows made here; MMLU of two subjects, 3 and 7 rows."""
    manager = pytest.importorskip("lm_eval.tasks").TaskManager
    root = Path(sys.modules["lm_eval.tasks"].__file__ or "").parent
    folder = tmp_path / "board"
    for name, (own, rows, splits) in ROWS.items():
        files = {}
        for split, part in splits.items():
            files[split] = str(write(folder / f"{name}-{split}.jsonl", rows[:3] if part == "first" else rows))
        told = {"include": str(root / own), "task": name, "dataset_path": "json", "dataset_name": None,
                "dataset_kwargs": {"data_files": files}, "tag": None}  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(told))
    group = {
        "group": "mmlu",
        "task": ["mmlu_a", "mmlu_b"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    }
    (folder / "mmlu.yaml").write_text(json.dumps(group))
    monkeypatch.setattr(harness, "_manager", lambda names: manager(include_defaults=False, include_path=str(folder)))


@pytest.mark.usefixtures("board")
def test_the_leaderboard_has_its_shots_its_metrics_and_one_mean(letters, tmp_path, capsys):
    given = options(letters, None, "open_llm_leaderboard", max_new_tokens=3, out=str(tmp_path / "out"))
    report = evaluate_tasks(given)
    found = report["tasks"]
    assert {name: found[name]["shots"] for name in found} == {
        "arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "mmlu_a": 5, "mmlu_b": 5, "winogrande": 5,
        "gsm8k": 5,
    }  # fmt: skip
    board = report["open_llm_leaderboard"]
    subjects = [found[name]["scores"]["acc,none"]["value"] for name in ("mmlu_a", "mmlu_b")]
    assert board["parts"]["mmlu"] == pytest.approx(100 * fmean(subjects))
    assert board["parts"]["hellaswag"] == pytest.approx(100 * found["hellaswag"]["scores"]["acc_norm,none"]["value"])
    truth = found["truthfulqa_mc2"]["scores"]["acc,none"]["value"]
    assert 0 < truth < 1, "mc2 is a share of probability"
    assert board["parts"]["truthfulqa_mc2"] == pytest.approx(100 * truth)
    assert board["mean"] == pytest.approx(fmean(board["parts"].values()))
    assert list(board["parts"]) == list(PARTS)
    weighted = (3 * subjects[0] + 7 * subjects[1]) / 10
    assert report["groups"]["mmlu"]["scores"]["acc,none"]["value"] == pytest.approx(weighted)
    assert subjects[0] != subjects[1]
    measures = {measure.name: measure.per_item[1234] for measure in read_measures(tmp_path / "out" / "tasks")}
    assert len(measures["mmlu acc"]) == 10
    assert fmean(measures["mmlu acc"]) == pytest.approx(100 * weighted)
    assert [len(line["prompts"]) for line in lines_of(tmp_path / "out", "winogrande")] == [2, 2, 2]
    assert f"{board['mean']:.2f}" in capsys.readouterr().out


@pytest.mark.usefixtures("board")
def test_a_run_that_ends_in_the_middle_goes_on_there(letters, tmp_path, monkeypatch):
    given = options(letters, None, "winogrande", "mmlu", num_fewshot=0, out=str(tmp_path / "out"))
    asked: list[str] = []
    evaluate = harness.evaluate

    def ends(wrapped: Any, task: Any, *rest: Any, **settings: Any) -> Any:
        asked.append(task.config.task)
        if asked[-1] == "mmlu_b" and len(asked) == 3:
            raise KeyboardInterrupt
        return evaluate(wrapped, task, *rest, **settings)

    monkeypatch.setattr(harness, "evaluate", ends)
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(given)
    report = evaluate_tasks(given)
    assert asked == ["winogrande", "mmlu_a", "mmlu_b", "mmlu_b"]
    assert report["groups"]["mmlu"]["members"] == ["mmlu_a", "mmlu_b"]
    with pytest.raises(Mistake, match=r"mmlu_a is asked for twice"):
        evaluate_tasks(options(letters, None, "mmlu", "mmlu_a", out=str(tmp_path / "twice")))


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["gsm9k"], r"tasks: unknown task 'gsm9k'; did you mean 'gsm8k'?"),
        (["winogrande"], r"tasks: winogrande or its data do not load: .*; is there a network\? .* by --data"),
        (["humaneval"], r"tasks: humaneval runs the code that a model wrote; see stillhouse evaluate code"),
    ],
)
def test_a_task_that_cannot_be_had_is_one_line(names, line, letters, tmp_path, capsys):
    command = ["evaluate", "tasks", f"--model={letters}", f"--out={tmp_path}", "--tasks", *names]
    assert cli.main(command) == 2
    said = capsys.readouterr()
    assert re.fullmatch(f"stillhouse: {line}\n", said.err) or said.err == f"stillhouse: {line}\n"
    assert len(said.err.strip()) <= LONGEST_LINE
    assert said.out == ""


def test_rows_of_another_shape_are_named(letters, tmp_path):
    data = write(tmp_path / "test.jsonl", [{"instruction": "a", "output": "b"}])
    with pytest.raises(Mistake, match=r"test\.jsonl: is not what gsm8k asks: .*question"):
        evaluate_tasks(options(letters, data, "gsm8k", num_fewshot=0, out=str(tmp_path)))


def test_examples_come_from_a_file_beside_the_questions(letters, tmp_path):
    data = write(tmp_path / "test.jsonl", ASKED)
    with pytest.raises(Mistake, match=r"gsm8k shows 5 examples, and there is no train file beside .*--num_fewshot=0"):
        evaluate_tasks(options(letters, data, "gsm8k", out=str(tmp_path)))


def test_a_group_has_no_file_of_rows(letters, gsm8k, tmp_path):
    with pytest.raises(Mistake, match=r"data: is of one task, and mmlu names several"):
        evaluate_tasks(options(letters, gsm8k, "mmlu", out=str(tmp_path)))


def test_an_answer_longer_than_the_model_is_refused(letters, gsm8k, tmp_path):
    with pytest.raises(Mistake, match=r"gsm8k wants 256 tokens of an answer, and the model has 256 positions"):
        evaluate_tasks(options(letters, gsm8k, "gsm8k", out=str(tmp_path)))


def test_a_chat_template_that_is_not_there_is_refused(letters, gsm8k, tmp_path):
    with pytest.raises(Mistake, match=r"no chat template"):
        evaluate_tasks(options(letters, gsm8k, "gsm8k", apply_chat_template=True, out=str(tmp_path)))


def test_options_of_written_answers_are_refused_where_none_is_written(letters, tmp_path):
    data = write(tmp_path / "test.jsonl", CHOICES)
    with pytest.raises(Mistake, match=r"^temperature: is of written answers, and no task here asks for one"):
        evaluate_tasks(options(letters, data, "arc_easy", num_fewshot=0, temperature=1, out=str(tmp_path)))


def test_a_beginning_that_the_tokenizer_does_not_put_is_refused(letters, gsm8k, tmp_path):
    with pytest.raises(Mistake, match=r"^bos: lm-eval leaves the BOS token to the tokenizer"):
        evaluate_tasks(options(letters, gsm8k, "gsm8k", max_new_tokens=4, bos=True, out=str(tmp_path)))


@pytest.mark.parametrize("turns", [True, False])
def test_chats_are_written_by_the_tokenizer(turns, gsm8k, tmp_path):
    chat = save_model(tmp_path / "chat", tokenizer=chat_tokenizer(), writes=("4",))
    given: dict[str, Any] = {"apply_chat_template": True, "fewshot_as_multiturn": turns, "system_instruction": "Count."}
    evaluate_tasks(
        options(chat, gsm8k, "gsm8k", num_fewshot=2, limit=1, max_new_tokens=4, out=str(tmp_path / "out"), **given)
    )
    prompt = lines_of(tmp_path / "out", "gsm8k")[0]["prompts"][0]
    assert prompt.startswith("<|im_start|>system\nCount.<|im_end|>\n<|im_start|>user\nQuestion: ")
    assert prompt.endswith("<|im_start|>assistant\n")
    assert prompt.count("<|im_start|>user") == (3 if turns else 1)


def test_answers_are_drawn_as_asked(letters, gsm8k, tmp_path):
    written = {}
    for name, drawn in {
        "own": {}, "greedy": {"temperature": 0}, "seed 1": {"temperature": 1, "seed": 1},
        "seed 2": {"temperature": 1, "seed": 2}, "narrow": {"temperature": 1, "seed": 2, "top_p": 1e-6},
    }.items():  # fmt: skip
        given: dict[str, Any] = {
            "num_fewshot": 0, "limit": 4, "max_new_tokens": 12, "out": str(tmp_path / name), **drawn,
        }  # fmt: skip
        evaluate_tasks(options(letters, gsm8k, "gsm8k", **given))
        written[name] = [line["responses"] for line in lines_of(tmp_path / name, "gsm8k")]
        smaller = options(letters, gsm8k, "gsm8k", **given, batch_size=2)
        if "seed" in drawn:  # lm-eval draws for a batch together
            with pytest.raises(Mistake, match="was made with batch_size=8, now 2"):
                evaluate_tasks(smaller)
        else:
            evaluate_tasks(smaller)
    assert written["own"] == written["greedy"] == written["narrow"] != written["seed 1"]
    assert written["seed 1"] != written["seed 2"]


@pytest.mark.usefixtures("board")
def test_examples_that_a_task_refuses_are_said(letters, tmp_path, capsys):
    report = evaluate_tasks(options(letters, None, "truthfulqa_mc2", num_fewshot=3, out=str(tmp_path / "out")))
    assert report["tasks"]["truthfulqa_mc2"]["shots"] == 0
    assert "truthfulqa_mc2 is defined with 0 examples" in capsys.readouterr().err


def test_without_lm_eval_its_extra_is_named(letters, gsm8k, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(Mistake, match=r"^evaluate tasks: needs lm-eval; pip install 'stillhouse\[eval\]'$"):
        evaluate_tasks(options(letters, gsm8k, "gsm8k", out=str(tmp_path)))


def test_generation_settings_are_those_of_the_harness(letters):
    made = options(letters, None, "gsm8k", temperature=0.5, top_p=0.9, max_new_tokens=3)
    assert made.generation == {"max_gen_toks": 3, "temperature": 0.5, "top_p": 0.9, "do_sample": True}
    assert options(letters, None, "gsm8k", temperature=0).generation == {"temperature": 0, "do_sample": False}
