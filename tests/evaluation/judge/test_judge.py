"""`evaluate judge` from questions to means: a real student, a real server, and runs that are killed."""

from __future__ import annotations

import json
import multiprocessing
import re
import threading
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from stillhouse import store
from stillhouse.data.questions import read_questions
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation import read_measures
from stillhouse.evaluation.judge import evaluate_by_judge, rating
from stillhouse.evaluation.judge.answers import Asking, answer
from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import JudgeOptions
from stillhouse.rollout import Sampling, respond
from tests.evaluation.judge.server import JUDGE, Act, serving
from tests.rollout.small import chat_tokenizer, save_model

KEY = "sk-very-secret-0123456789"
QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["Tell me.", "Shorter."]},
    {"question_id": 82, "category": "math", "turns": ["1 + 1?", "Twice?"], "reference": ["two", "four"]},
    {"question_id": "x", "category": "cooking", "turns": ["Soup?", "And salt?"]},
    {"question_id": 84, "category": "math", "turns": ["2 + 2?", "Why?"], "reference": ["four"]},
]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("student"), tokenizer=chat_tokenizer(), writes=("a", "b", " "))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def options(student: Path, data: Path, address: str, **others: Any) -> JudgeOptions:
    settings: dict[str, Any] = {
        "judge_model": "gpt-4", "key_variable": "JUDGE_KEY", "out": str(data.parent / "out"), "seeds": [10, 20],
        "template": "plain", "max_new_tokens": 7, "wait": 0.01, "timeout": 5.0, "retries": 3, "requests": 3, **others,
    }  # fmt: skip
    return JudgeOptions(model=str(student), data=str(data), judge=address, **settings)


def grade(body: dict[str, Any]) -> int:
    """A grade that follows from what is judged."""
    return 1 + sum(map(ord, body["messages"][1]["content"])) % 10


def graded(number: int, body: dict[str, Any]) -> Act:
    return Act(f"I see. Rating: [[{grade(body)}]]")


def answers(out: Path, seed: int) -> list[dict[str, Any]]:
    store.verify_folder(out / f"seed{seed}")
    return store.read_jsonl(out / f"seed{seed}" / "predictions.jsonl")


def kept(out: Path) -> list[dict[str, Any]]:
    return (
        []
        if not (out / "judgements.jsonl").exists()
        else [json.loads(line) for line in store.read_lines(out / "judgements.jsonl")]
    )


def test_means_are_those_of_the_grades(student, data):
    with serving(graded) as judge:
        report = evaluate_by_judge(options(student, data, judge.address))
    out = data.parent / "out" / "judge"
    assert store.read_json(out / "judge.json") == report
    grades: dict[tuple[int, str, int], float] = {}
    asked = [body["messages"][1]["content"] for body in judge.asked]
    for seed in (10, 20):
        for line in answers(out, seed):
            for turn in (0, 1):
                (found,) = (
                    body
                    for body, text in zip(judge.asked, asked, strict=True)
                    if f"answer{' 2' if turn else ''} >>>\n{line['texts'][turn]}\n<<<" in text
                    and next(q for q in QUESTIONS if str(q["question_id"]) == line["question"])["turns"][turn] in text
                    and (" 2 >>>" in text) == bool(turn)
                    and (not turn or f"answer 1 >>>\n{line['texts'][0]}\n" in text)
                )
                grades[seed, line["question"], turn] = grade(found)
    names = [str(question["question_id"]) for question in QUESTIONS]
    for turn in (0, 1):
        means = [fmean(grades[seed, name, turn] for name in names) for seed in (10, 20)]
        entry = report["overall"][str(turn + 1)]
        assert list(entry["per_seed"].values()) == pytest.approx(means)
        assert entry["mean"] == pytest.approx(fmean(means))
        assert entry["std"] == pytest.approx(stdev(means))
    assert report["overall"]["both"]["mean"] == pytest.approx(fmean(grades.values()))
    math = [grades[seed, name, 1] for seed in (10, 20) for name in ("82", "84")]
    assert report["categories"]["math"]["2"]["mean"] == pytest.approx(fmean(math))
    assert list(report["categories"]) == ["writing", "math", "cooking"]
    assert report["judge"]["models"] == [JUDGE]
    replies = report["judge"]["replies"]
    assert replies == len(judge.asked) == len(kept(out)) == len(set(judge.texts))
    assert report["judge"]["tokens"] == {"prompt": 100 * replies, "completion": 7 * replies, "uncounted": 0}
    assert report["unparsed"] == {"1": 0, "2": 0}
    assert report["questions"] == 4
    measures = {measure.name: measure for measure in read_measures(out)}
    assert set(measures) == {"judge turn 1", "judge turn 2", "judge"}
    assert measures["judge turn 2"].per_item[20] == [grades[20, name, 1] for name in names]
    assert measures["judge"].per_item[10] == [fmean((grades[10, name, 0], grades[10, name, 1])) for name in names]


def test_explanations_are_kept_and_the_key_is_nowhere(student, data, capsys):
    with serving(lambda number, body: Act(f"Your key {KEY} is fine. [[4]]")) as judge:
        evaluate_by_judge(options(student, data, judge.address))
    files = [file for file in data.parent.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert all(KEY.encode() not in file.read_bytes() for file in files)
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    line = kept(data.parent / "out" / "judge")[0]
    assert line["reply"] == "Your key *** is fine. [[4]]"
    assert line["rating"] == 4.0
    assert {"question_id", "seed", "turn", "model", "tokens"} < line.keys()
    assert judge.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_what_is_there_is_neither_answered_nor_judged_again(data, tmp_path):
    student = save_model(tmp_path / "student")
    with serving(graded) as judge:
        first = evaluate_by_judge(options(student, data, judge.address))
        asked = len(judge.asked)
        (student / "model.safetensors").rename(tmp_path / "aside")
        with pytest.raises(Mistake, match="safetensors"):
            evaluate_by_judge(options(student, data, judge.address))
        (tmp_path / "aside").rename(student / "model.safetensors")
        assert evaluate_by_judge(options(student, data, judge.address)) == first
        assert len(judge.asked) == asked
        other = evaluate_by_judge(options(student, data, judge.address, judge_model="gpt-5"))
        assert len(judge.asked) == 2 * asked
        assert other["judge"]["asked"] == "gpt-5"


def test_a_reply_without_a_rating_is_asked_for_again_with_a_reminder(student, data):
    def forgetful(number: int, body: dict[str, Any]) -> Act:
        return Act("Rating: [[7]]" if len(body["messages"]) > 2 else "Quite good, eight of ten.")

    with serving(forgetful) as judge:
        report = evaluate_by_judge(options(student, data, judge.address, seeds=[10]))
    assert report["overall"]["both"]["mean"] == 7.0
    assert report["unparsed"] == {"1": 0, "2": 0}
    assert report["judge"]["replies"] == len(judge.asked) == 16
    again = [body["messages"] for body in judge.asked if len(body["messages"]) > 2]
    assert all(messages[2]["content"] == "Quite good, eight of ten." for messages in again)


def test_what_never_gets_a_rating_is_counted_and_is_in_no_mean(student, data, capsys):
    def mute(number: int, body: dict[str, Any]) -> Act:
        text = body["messages"][1]["content"]
        return Act("I would rather not." if "Soup?" in text and "salt" not in text else "[[6]]")

    with serving(mute) as judge:
        report = evaluate_by_judge(options(student, data, judge.address, seeds=[10], attempts=2))
        assert sum("Soup?" in text and "salt" not in text for text in judge.texts) == 2
        evaluate_by_judge(options(student, data, judge.address, seeds=[10], attempts=2))
        assert sum("Soup?" in text and "salt" not in text for text in judge.texts) == 2
    assert report["unparsed"] == {"1": 1, "2": 0}
    assert report["overall"]["1"]["mean"] == 6.0
    assert report["categories"]["cooking"]["1"] == {"mean": None, "std": None, "per_seed": {"10": None}}
    assert report["categories"]["cooking"]["both"]["mean"] == 6.0
    assert [measure.name for measure in read_measures(data.parent / "out" / "judge")] == ["judge turn 2"]
    said = capsys.readouterr()
    assert "1 judgements have no rating" in said.err
    assert "no rating" in said.out


def test_a_flaky_server_changes_no_grade(student, data):
    failures = [Act(status=500), Act(status=429, headers={"Retry-After": "0.01"}), Act(cut=True), Act(raw=b"{")]

    def flaky(number: int, body: dict[str, Any]) -> Act:
        return failures[number // 3 % 4] if number % 3 == 0 else graded(number, body)

    with serving(graded) as judge:
        calm = evaluate_by_judge(options(student, data, judge.address))
    with serving(flaky) as judge:
        stormy = evaluate_by_judge(options(student, data, judge.address, out=str(data.parent / "other"), retries=9))
    assert stormy["overall"] == calm["overall"]
    assert stormy["judge"]["replies"] == calm["judge"]["replies"] < len(judge.asked)


def test_a_judge_that_gives_up_leaves_what_it_judged(student, data):
    def ends(number: int, body: dict[str, Any]) -> Act:
        return graded(number, body) if number < 5 else Act(status=401)

    with serving(ends) as judge:
        with pytest.raises(Mistake, match="refuses the key"):
            evaluate_by_judge(options(student, data, judge.address, requests=1))
        assert len(judge.asked) == 6
    assert len(kept(data.parent / "out" / "judge")) == 5


def test_a_line_of_the_log_that_is_no_reply_is_named(student, data):
    store.append_line(data.parent / "out" / "judge" / "judgements.jsonl", '{"asked": 1}')
    with pytest.raises(Mistake, match=r"judgements\.jsonl:1: is not a judge's reply"):
        evaluate_by_judge(options(student, data, "http://127.0.0.1:9/v1"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_killed_run_asks_nothing_twice(student, data):
    stalled = threading.Event()

    def stalls(number: int, body: dict[str, Any]) -> Act:
        act = graded(number, body)
        return act if number < 5 else Act(act.text, wait=stalled)

    out = data.parent / "out" / "judge"
    with serving(stalls) as judge:
        given = options(student, data, judge.address, timeout=60.0)
        run = multiprocessing.get_context("fork").Process(target=evaluate_by_judge, args=(given,))
        run.start()
        deadline = time.monotonic() + 60
        while (len(judge.asked) < 8 or len(kept(out)) < 5) and time.monotonic() < deadline and run.is_alive():
            time.sleep(0.01)
        assert run.is_alive()
        run.kill()
        run.join()
        assert len(kept(out)) == 5
        heard = judge.texts[:5]
        stalled.set()
        report = evaluate_by_judge(given)
    assert [judge.texts.count(text) for text in heard] == [1] * 5
    assert len(kept(out)) == len({line["asked"] for line in kept(out)}) == report["judge"]["replies"]
    with serving(graded) as undisturbed:
        whole = evaluate_by_judge(options(student, data, undisturbed.address, out=str(data.parent / "whole")))
    assert report["overall"] == whole["overall"]


def asking(template: str, tokenizer: Any, **others: Any) -> Asking:
    settings: dict[str, Any] = {
        "max_new_tokens": 9, "temperature": None, "top_p": 1.0, "room": 200, "bos": None, "batch_size": 3, **others,
    }  # fmt: skip
    return Asking(build(template, tokenizer), **settings)


JOINED = {
    "plain": "{0}\n{a}\n\n{1}\n",
    "short": "### Instruction:\n{0}\n\n### Response:\n{a}\n\n### Instruction:\n{1}\n\n### Response:\n",
    "chat": "<|im_start|>user\n{0}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n<|im_start|>user\n{1}<|im_end|>\n"
    "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("template", JOINED)
def test_the_second_turn_has_the_students_own_first_answer(student, data, template):
    """The slow twin asks question by question, with the whole conversation written by hand."""
    tokenizer, model = load_tokenizer(student), load_causal_lm(str(student))
    questions = read_questions(data)
    found = answer(model, tokenizer, questions, asking(template, tokenizer), 3)
    stop: list[Any] = [tokenizer.convert_tokens_to_ids("<|im_end|>")] if template == "chat" else []
    for place, (question, one) in enumerate(zip(questions, found, strict=True)):
        temperature = {"writing": 0.7, "math": 0.0, "cooking": 0.7}[question.category]
        text = JOINED[template].format(*question.turns, a=one.texts[0])
        for turn in (0, 1):
            given = text if turn else text[: text.rindex(one.texts[0] + ("<|im_end|>" if stop else "\n\n"))]
            if not turn:
                given = JOINED[template].split("{a}")[0].format(question.turns[0])
            ids = tokenizer(given, add_special_tokens=False)["input_ids"]
            sampling = Sampling(max_new_tokens=9, temperature=temperature)
            (alone,) = respond(model, tokenizer, [ids], sampling, seed=[(3, place, turn)], batch_size=1, stop=stop)
            assert alone.text == one.texts[turn]
    assert len({one.texts for one in found}) > 1


def test_alpaca_says_its_preamble_once():
    text = build("alpaca").continued(["one?", "", "two?"], "here").text
    assert text.count("Below is an instruction") == 1
    assert text.endswith("### Response:\n\n\n### Instruction:\ntwo?\n\n### Response:\n")


def test_of_a_long_conversation_the_end_is_kept(student, data):
    tokenizer = load_tokenizer(student)
    ids, cut = asking("plain", tokenizer, room=40).encoded(["a" * 50, "b" * 9, "why?"], "here", tokenizer)
    assert (len(ids), cut) == (31, True)
    assert tokenizer.decode(ids).endswith("b\n\nwhy?\n")
    assert asking("plain", tokenizer, room=40).encoded(["a" * 20], "here", tokenizer)[1] is False


def test_temperatures_are_the_categories_unless_one_is_given(student):
    tokenizer = load_tokenizer(student)
    expected = {
        "writing": 0.7, "roleplay": 0.7, "extraction": 0, "math": 0, "coding": 0, "reasoning": 0, "stem": 0.1,
        "humanities": 0.1, "cooking": 0.7,
    }  # fmt: skip
    assert {name: asking("plain", tokenizer).sampling(name).temperature for name in expected} == expected
    assert asking("plain", tokenizer, temperature=0.3).sampling("math").temperature == 0.3


def test_greedy_answers_are_made_for_the_first_seed_only(student, data, capsys):
    with serving(graded) as judge:
        report = evaluate_by_judge(options(student, data, judge.address, temperature=0.0))
    assert report["settings"]["seeds"] == [10]
    assert report["overall"]["both"]["std"] is None
    assert "only 10 is used" in capsys.readouterr().err
    assert len(judge.asked) == 8


def test_ratings_in_the_log_are_those_that_are_read_again(student, data):
    with serving(graded) as judge:
        evaluate_by_judge(options(student, data, judge.address, limit=1))
    lines = kept(data.parent / "out" / "judge")
    assert all(line["rating"] == rating(line["reply"]) for line in lines)
    assert all(re.fullmatch(r"[0-9a-f]{16}", line["asked"]) for line in lines)
