"""GSM8K's own rows and GPT-2's own tokenizer through lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse import store
from stillhouse.data.rows import read_rows
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation import harness
from stillhouse.evaluation.tasks import evaluate_tasks
from stillhouse.recipe import TasksOptions
from tests.rollout.small import tiny_gpt2


def test_gsm8k_with_five_examples(shared: Path, tmp_path: Path):
    tokenizer = load_tokenizer(shared / "tokenizers" / "gpt2-base")
    tiny_gpt2(n_positions=1024, vocab_size=len(tokenizer), n_layer=1).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = shared / "data" / "gsm8k" / "test.jsonl"
    model, out = str(tmp_path / "model"), str(tmp_path / "out")
    given = TasksOptions(model=model, tasks=["gsm8k"], data=str(data), limit=2, max_new_tokens=8, out=out)
    report = evaluate_tasks(given)
    entry = report["tasks"]["gsm8k"]
    assert (entry["shots"], entry["documents"], entry["of"]) == (5, 2, 1319)
    answers = {str(row.fields["answer"]) for row in read_rows(data.with_name("train.jsonl"))}
    for line in store.read_jsonl(tmp_path / "out" / "tasks" / "gsm8k" / "predictions.jsonl"):
        *examples, asked = line["prompts"][0].split("\n\nQuestion: ")
        assert asked == f"{line['doc']['question']}\nAnswer:"
        assert len(examples) == 5
        assert all(example.split("\nAnswer: ")[1] in answers for example in examples)
        assert line["responses"][0][0]


@pytest.mark.parametrize("bos", [None, True, False])
def test_the_beginning_of_text_token_is_as_asked(shared: Path, bos: bool | None):
    tokenizer = load_tokenizer(shared / "tokenizers" / "llama2-7b-hf")
    model = tiny_gpt2(vocab_size=len(tokenizer), n_layer=1)
    wrapped = harness.wrap(model, tokenizer, batch_size=1, max_length=64, bos=bos)
    assert (wrapped.tok_encode("a b")[0] == tokenizer.bos_token_id) is (bos is not False)
    assert wrapped.max_length == 64
