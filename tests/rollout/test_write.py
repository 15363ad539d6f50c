"""`write_responses`: files of rows in, the same rows with a model's responses out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stillhouse import store
from stillhouse.data import Row, read_rows
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import GenerateOptions
from stillhouse.rollout import Sampling, Written, generate, write_responses
from stillhouse.rollout.generate import Response
from stillhouse.rollout.write import answered_row, count
from tests.rollout.small import chat_tokenizer, save_model

ROWS: list[dict[str, Any]] = [
    {"instruction": "add", "input": "1 2", "output": "3", "note": "kept"},
    {"instruction": "no answer yet"},
    {"prompt": "say hi", "completion": ["hi", "hello"]},
    {"messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}], "id": 7},
    {"messages": [{"role": "user", "content": "and now?"}]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(model: Path, folder: Path, rows: list[dict[str, Any]] | None = None, **others: Any) -> GenerateOptions:
    settings = {
        "data": str(rows_file(folder, ROWS if rows is None else rows)), "out": str(folder / "out.jsonl"),
        "template": "short", "max_new_tokens": 9, **others,
    }  # fmt: skip
    return GenerateOptions(model=str(model), **settings)


def test_every_row_keeps_its_fields_and_gets_the_models_own_response(model, tmp_path, capsys):
    asked = options(model, tmp_path)
    written = write_responses(asked)
    tokenizer, template = load_tokenizer(model), build("short")
    ids = [tokenizer(template.prompt(row).text)["input_ids"] for row in read_rows(asked.data)]
    texts = generate(load_causal_lm(str(model)), tokenizer, ids, Sampling(9), seed=10, batch_size=32)
    expected = [
        {**ROWS[0], "output": texts[0]},
        {**ROWS[1], "output": texts[1]},
        {"prompt": "say hi", "completion": texts[2]},
        {"messages": [*ROWS[3]["messages"][:1], {"role": "assistant", "content": texts[3]}], "id": 7},
        {"messages": [*ROWS[4]["messages"], {"role": "assistant", "content": texts[4]}]},
    ]
    kept = [row for row, text in zip(expected, texts, strict=True) if text.strip()]
    assert store.read_jsonl(asked.out) == kept
    assert (written.rows, written.empty) == (5, 5 - len(kept))
    assert capsys.readouterr().out.startswith(f"{asked.out}: {len(kept)} of 5 rows answered")


def test_what_was_written_can_be_trained_on(model, tmp_path):
    asked = options(model, tmp_path)
    write_responses(asked)
    for row in read_rows(asked.out):
        assert build("short").examples(row)


def test_the_same_options_write_the_same_file(model, tmp_path):
    asked = options(model, tmp_path, overwrite=True)
    write_responses(asked)
    first = Path(asked.out).read_bytes()
    write_responses(asked)
    assert Path(asked.out).read_bytes() == first
    write_responses(options(model, tmp_path, overwrite=True, seed=11))
    assert Path(asked.out).read_bytes() != first


def test_max_length_and_prompt_length_are_counted_and_said(model, tmp_path, capsys):
    rows = [{"instruction": "a" * 80, "output": "x"}, {"instruction": "b", "output": "x"}]
    written = write_responses(options(model, tmp_path, rows, max_prompt_length=50, max_length=54, seed=12))
    assert (written.cut, written.clipped) == (1, 1)
    said = capsys.readouterr().out
    assert "1 prompts cut to max_prompt_length" in said
    assert "1 responses with less room than max_new_tokens" in said


def test_a_chat_model_stops_at_the_end_of_its_turn(tmp_path):
    model = save_model(tmp_path / "model", tokenizer=chat_tokenizer(), writes=["a", "<|im_end|>"])
    asked = options(model, tmp_path, ROWS[:1] * 9, template="chat", max_new_tokens=30)
    written = write_responses(asked)
    texts = [row["output"] for row in store.read_jsonl(asked.out)]
    assert written.unfinished == 0
    assert all(set(text) == {"a"} for text in texts)


def test_limit(model, tmp_path):
    assert write_responses(options(model, tmp_path, limit=2)).rows == 2


def test_counts_and_their_sentences():
    responses = [Response(" \n", True, False), Response("a", False, True), Response("b", True, False)]
    written = count(responses, cut=4)
    assert written == Written(rows=3, empty=1, unfinished=1, clipped=1, cut=4)
    assert [line.split()[0] for line in written.lines()] == ["2", "1", "1", "1", "4"]
    assert list(Written(3, 0, 0, 0, 0).lines()) == ["3 of 3 rows answered"]


def test_an_assistants_other_fields_are_not_passed_off_as_the_models():
    turn = {"role": "assistant", "content": "old", "reasoning": "old thoughts"}
    row = Row({"messages": [{"role": "user", "content": "q"}, turn]}, "rows.jsonl:1")
    assert answered_row(row, "new")["messages"][-1] == {"role": "assistant", "content": "new"}


@pytest.mark.parametrize(
    ("changes", "where", "wrong"),
    [
        ({"out": "there.jsonl"}, "out: {}/there.jsonl", "exists already"),
        ({"out": "out.json"}, "out: {}/out.json", "is not named .jsonl"),
        ({"out": "folder.jsonl"}, "out: {}/folder.jsonl", "is a folder"),
        ({"no_repeat_ngram_size": 1}, "no_repeat_ngram_size", "must be 0 (off) or at least 2, got 1"),
        (
            {"rows": [ROWS[0], {"instruction": "a", "score": float("nan")}]},
            "{}/rows.jsonl:2",
            "cannot be written as JSON: Out of range float values are not JSON compliant",
        ),
    ],
)
def test_mistakes_are_found_before_the_model_is_looked_at(tmp_path, changes, where, wrong):
    (tmp_path / "there.jsonl").touch()
    (tmp_path / "folder.jsonl").mkdir()
    settings: dict[str, Any] = {key: str(tmp_path / value) if key == "out" else value for key, value in changes.items()}
    with pytest.raises(Mistake) as caught:
        write_responses(options(tmp_path / "no model", tmp_path, **settings))
    assert (caught.value.where, caught.value.wrong) == (where.format(tmp_path), wrong)


def test_a_row_without_a_prompt_is_refused_before_the_weights_are_read(tmp_path):
    (save_model(tmp_path / "model") / "model.safetensors").unlink()
    with pytest.raises(Mistake, match="has no prompt to answer"):
        write_responses(options(tmp_path / "model", tmp_path, [{"text": "no prompt"}]))


def test_nothing_but_empty_responses_is_a_mistake(tmp_path):
    model = load_causal_lm(str(save_model(tmp_path / "model")))
    dict(model.named_parameters())["lm_head.weight"].data.zero_()  # the first of equals is the end of the text
    model.save_pretrained(tmp_path / "model")
    asked = options(tmp_path / "model", tmp_path, temperature=0)
    with pytest.raises(Mistake, match="none of its 5 responses has a word in it"):
        write_responses(asked)
    assert not Path(asked.out).exists()


def test_a_model_that_was_changed_after_it_was_saved_is_refused(tmp_path):
    with store.write_folder(tmp_path / "model") as folder:
        save_model(folder)
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    with pytest.raises(store.Corrupt, match=r"model\.safetensors"):
        write_responses(options(tmp_path / "model", tmp_path))
