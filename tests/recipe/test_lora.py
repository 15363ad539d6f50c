"""`student.lora`: defaults, what overrides what, and that its keys are those of the installed peft."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe, dump, parse
from stillhouse.recipe.lora import BEGINNINGS, DEFAULTS, RESERVED, arguments, settle

BASE = "data: {train: rows.jsonl}\n"


def student(tmp_path: Path, text: str, *overrides: str) -> dict[str, object] | None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"student: {text}\n{BASE}")
    recipe = parse("sft", [str(path), *overrides])
    assert isinstance(recipe, Recipe)
    # What is written beside the run is read as the same.
    again = tmp_path / "again.yaml"
    again.write_text(dump(recipe.as_dict()))
    assert parse("sft", [str(again)]).as_dict() == recipe.as_dict()
    return recipe.student.lora


def test_nothing_is_none_and_an_empty_section_is_the_papers_settings(tmp_path: Path) -> None:
    assert student(tmp_path, "{model: gpt2}") is None
    assert student(tmp_path, "{model: gpt2, lora: null}") is None
    assert student(tmp_path, "{model: gpt2, lora: {}}") == DEFAULTS
    assert DEFAULTS == {"r": 256, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": None}


@pytest.mark.parametrize(
    ("text", "override", "changed"),
    [
        ("{model: gpt2}", "--student.lora.r=16", {"r": 16}),
        ("{model: gpt2, lora: {}}", "--student.lora.r=16", {"r": 16}),
        ("{model: gpt2, lora: null}", "--student.lora.r=16", {"r": 16}),
        ("{model: gpt2, lora: {r: 4, lora_alpha: 3}}", "--student.lora.r=16", {"r": 16, "lora_alpha": 3}),
        ("{model: gpt2}", "--student.lora={}", {}),
        ("{model: gpt2, lora: {r: 4}}", "--student.lora={}", {}),
        ("{model: gpt2}", "--student.lora.target_modules=all-linear", {"target_modules": "all-linear"}),
        ("{model: gpt2}", "--student.lora.target_modules=[c_attn, c_fc]", {"target_modules": ["c_attn", "c_fc"]}),
        ("{model: gpt2}", "--student.lora.use_dora=true", {"use_dora": True}),
        ("{model: gpt2, lora: {rank_pattern: {c_attn: 4}}}", "--student.lora.r=16",
         {"r": 16, "rank_pattern": {"c_attn": 4}}),
        ("{model: gpt2}", "--student.lora.init_lora_weights=pissa", {"init_lora_weights": "pissa"}),
    ],
)  # fmt: skip
def test_the_command_line_overrides_single_keys(
    tmp_path: Path, text: str, override: str, changed: dict[str, object]
) -> None:
    assert student(tmp_path, text, override) == {**DEFAULTS, **changed}


def test_null_takes_the_whole_section_away(tmp_path: Path) -> None:
    assert student(tmp_path, "{model: gpt2, lora: {r: 4}}", "--student.lora=null") is None


def test_a_teacher_that_was_null_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"student: {{model: gpt2}}\nteacher: null\n{BASE}")
    made = parse("distill", [str(path), "--teacher.model=gpt2-xl", "--method=todi"])
    assert made.teacher.model == "gpt2-xl"


def test_a_second_settling_changes_nothing() -> None:
    settled = settle({"r": 8, "modules_to_save": ["lm_head"], "use_rslora": True})
    assert settle(settled) == settled
    with pytest.raises(Mistake, match=r"student.lora.rr: unknown key 'rr'"):
        settle({"rr": 8})


@pytest.mark.slow
def test_keys_are_those_of_the_real_lora_config() -> None:
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig) if field.init}
    assert arguments().keys() <= fields
    assert fields - arguments().keys() <= RESERVED.keys(), "a new key of peft's needs a decision"
    assert DEFAULTS.keys() <= arguments().keys()
    for beginning in (True, False, *BEGINNINGS):
        LoraConfig(init_lora_weights=beginning)
    LoraConfig(**DEFAULTS)
