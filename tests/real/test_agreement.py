"""`evaluate agreement` with real tokenizers on real rows: every figure, and bytes that both sides count alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from stillhouse import store
from stillhouse.data.rows import read_rows
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.evaluation.agreement.figures import entry_of
from stillhouse.recipe import AgreementOptions
from tests.evaluation import agreement_twin as dense
from tests.evaluation.test_agreement import Case

pytestmark = pytest.mark.slow


def write_models(shared: Path, folder: Path) -> None:
    """A GPT-2 and a Llama of a few numbers, with the real ones' tokenizers, and four rows of dolly."""
    torch.manual_seed(1)
    gpt2, llama = (load_tokenizer(shared / "tokenizers" / name) for name in ("gpt2-base", "llama2-7b-hf"))
    student = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(gpt2) + 47, n_embd=8, n_layer=1, n_head=2, n_positions=256, initializer_range=1.0)
    )
    teacher = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(llama), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=256, initializer_range=1.0,
        )
    )  # fmt: skip
    for name, model, tokenizer in (("student", student, gpt2), ("teacher", teacher, llama)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rows = [row.fields for row in read_rows(shared / "data" / "dolly") if len(row.fields["output"]) < 120]
    store.write_jsonl(folder / "rows.jsonl", [*rows[:3], {"prompt": "Say it.", "completion": "naïve 你好  — ok\n"}])


def test_figures_between_real_tokenizers_are_those_of_whole_softmaxes(shared: Path, tmp_path: Path) -> None:
    write_models(shared, tmp_path)
    asked = AgreementOptions(
        model=str(tmp_path / "student"),
        teacher=str(tmp_path / "teacher"),
        data=[str(tmp_path / "rows.jsonl")],
        max_length=250,
        max_prompt_length=120,
        vocabulary={"name": "prefix"},
    )
    case = Case(asked)
    lines = case.lines(2)
    wanted = dense.figures(dense.read(case.held, case.pair, case.models, 1.0), 5, 15)
    found = dense.flat(entry_of(lines, 15))
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-8, abs=1e-8)
    assert 0 < wanted["unreached student"] < 100 and wanted["compared"] >= 40
    in_fp32 = dense.flat(entry_of(Case(asked, torch.float32).lines(4), 15))
    assert {key: in_fp32[key] for key in wanted} == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    sizes = [
        len(row.fields.get("output", row.fields.get("completion")).encode()) + 1 for row in read_rows(asked.data[0])
    ]
    for who in ("student", "teacher"):
        assert [line[who]["bytes"] for line in lines] == sizes
    assert wanted["student tokens"] != wanted["teacher tokens"]
