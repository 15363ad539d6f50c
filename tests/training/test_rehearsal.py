"""`--dry-run`: what it says, and that it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillhouse import cli
from stillhouse.training.rehearsal import rehearse
from tests import toy
from tests.training.test_run import recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and rows."""
    return toy.write_world(tmp_path_factory.mktemp("rehearsed"))


def test_it_says_what_a_run_would_be_and_leaves_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--training.num_train_epochs=5", "--training.gradient_accumulation_steps=2"]
    made = recipe(world, tmp_path, *options, f"--data.eval={world / 'dev.jsonl'}")
    before = sorted(tmp_path.rglob("*"))
    rehearse(made)
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().err
    assert "10 steps of 16 examples (8 x 2 accumulated x 1 processes), 2 an epoch" in said
    assert "an example has 40 tokens, 6 of them scored (14%)" in said
    assert "step 1 of 1" in said and "one step took" in said and "dry run: nothing was written" in said
    assert "eval_loss" not in said


def test_estimates_are_those_of_the_formulas(world: Path, tmp_path: Path) -> None:
    """6 FLOP a trained parameter and token, 2 a frozen one, heads at scored positions; AdamW keeps two numbers."""
    from transformers import AutoModelForCausalLM

    from stillhouse.training import rehearsal
    from stillhouse.training.arguments import training_arguments
    from stillhouse.training.preflight import tokenizers_of
    from stillhouse.training.prepare import prepare

    made = recipe(world, tmp_path)
    arguments = training_arguments(made)
    prepared = prepare(made, tmp_path, tokenizers_of(made)[0], arguments)
    models = [AutoModelForCausalLM.from_pretrained(world / name) for name in ("small", "large")]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    heads = [model.get_output_embeddings().weight.numel() for model in models]
    assert rehearsal._flops(prepared, 100.0, 10.0) == pytest.approx(
        6 * (sizes[0] - heads[0]) * 100 + 6 * heads[0] * 10 + 2 * (sizes[1] - heads[1]) * 100 + 2 * heads[1] * 10
    )
    parts = rehearsal._memory(made, prepared, arguments, 100.0)
    assert parts["student"] == parts["gradients"] == parts["optimizer"] / 2 == 4 * sizes[0]
    assert parts["teacher"] == 4 * sizes[1]
    assert parts["activations"] == 100 * 16 * 1 * 34 * 2  # fp32: twice the 16 bits that 34 is for
    again = recipe(world, tmp_path, "--training.activation_checkpointing=true")
    assert rehearsal._memory(again, prepared, arguments, 100.0)["activations"] == 100 * 16 * 1 * 2 * 2


def test_the_student_writes_once_whatever_is_drawn(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--rollout.share=0.0", "--rollout.max_new_tokens=5", "--rollout.batch_size=3"]
    rehearse(recipe(world, tmp_path, "--rollout.source=mixed", *more))
    said = capsys.readouterr().err
    assert "dry run: the student writes in this step" in said and "on_policy 1, written_tokens" in said
    assert (
        "while the student writes, it needs about 0.00 GiB: models and optimizer 0.00, cache 0.00, draws 0.00" in said
    )
    rehearse(recipe(world, tmp_path))
    assert "writes" not in capsys.readouterr().err


def test_what_writing_needs_is_counted(world: Path, tmp_path: Path) -> None:
    """Keys and values of all positions that prompts and responses can have, and a few rows of the vocabulary."""
    from stillhouse.training import rehearsal
    from stillhouse.training.arguments import training_arguments
    from stillhouse.training.preflight import tokenizers_of
    from stillhouse.training.prepare import prepare

    def needed(*more: str) -> dict[str, float]:
        made = recipe(world, tmp_path, "--rollout.source=student", "--rollout.max_new_tokens=5", *more)
        arguments = training_arguments(made)
        prepared = prepare(made, tmp_path, tokenizers_of(made)[0], arguments)
        found = rehearsal._writing(made, prepared, arguments)
        if found and made.rollout is not None:
            models = [prepared.distiller.student, *([prepared.distiller.teacher.model] if "mix" in str(more) else [])]
            ids = torch.ones(2, 7, dtype=torch.long)
            caches = [model(ids, use_cache=True).past_key_values for model in models]
            kept = sum(layer.keys.numel() + layer.values.numel() for cache in caches for layer in cache.layers)
            longest = made.data.max_prompt_length + 5
            assert found["cache"] == made.rollout["batch_size"] * longest * 4 * kept / (2 * 7)
            assert found["draws"] == made.rollout["batch_size"] * len(prepared.trainer.tokenizer) * 28
        return found

    assert needed("--rollout.batch_size=3") != needed("--rollout.batch_size=2", "--rollout.teacher_mix=0.5")


def test_the_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(world, tmp_path)
    assert cli.main(["distill", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert "dry run: nothing was written" in capsys.readouterr().err
    assert cli.main(["evaluate", "--dry-run"]) == 2
    assert capsys.readouterr().err == "stillhouse: --dry-run: is not asked by evaluate; it is for sft and distill\n"
