"""`stillhouse export`: what it writes stands alone, answers as the checkpoint does, and says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse import adapters, evaluation, store
from stillhouse.export import export
from stillhouse.mistakes import Mistake
from stillhouse.models import load_causal_lm
from stillhouse.recipe import EvaluateOptions, ExportOptions, parse
from stillhouse.training import run
from tests import toy

TIED = pytest.mark.filterwarnings("ignore:.*(tied|tie_word_embeddings)")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, rows, and two runs: one of an adapter, one of all weights."""
    folder = tmp_path_factory.mktemp("world")
    toy.write_model(folder / "small", 1)
    toy.write_model(folder / "large", 2, hidden=24, sharp=20.0)
    toy.write_rows(folder / "train.jsonl", 24)
    toy.write_rows(folder / "questions.jsonl", 6)
    for name, extra in (("adapter", ["--student.lora.r=4", "--student.lora.lora_dropout=0"]), ("whole", [])):
        run(parse("distill", [*arguments(folder), f"--name={name}", *extra]))
    return folder


def arguments(world: Path) -> list[str]:
    keys = {
        "student.model": world / "small", "teacher.model": world / "large", "method": "taid",
        "data.train": world / "train.jsonl", "data.eval": world / "questions.jsonl", "data.template": "short",
        "data.max_length": 96, "data.max_prompt_length": 64, "training.learning_rate": "3e-1",
        "training.num_train_epochs": 2, "training.use_cpu": "true", "evaluation.max_new_tokens": 8,
        "output": world / "outputs",
    }  # fmt: skip
    return [f"--{key}={value}" for key, value in keys.items()]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(12)[None]).logits.float()


def scores(world: Path, model: Path, out: Path) -> dict[str, Any]:
    options = EvaluateOptions(
        model=str(model), data=[str(world / "questions.jsonl")], out=str(out), template="short", max_length=96,
        max_prompt_length=64, max_new_tokens=16, temperature=0.0, seeds=[10],
    )  # fmt: skip
    return evaluation.evaluate(options)["data"]


@pytest.mark.parametrize("name", ["adapter", "whole"])
def test_the_export_answers_as_the_checkpoint_does(world: Path, tmp_path: Path, name: str, capsys: Any) -> None:
    folder = world / "outputs" / "small" / "taid" / name
    (best,) = folder.glob("epoch*")
    out = export(ExportOptions(model=str(folder), out=str(tmp_path / "out")))
    said = capsys.readouterr()
    assert said.err == f"{folder} is a run; its best checkpoint is used: {best.name}\n"
    assert said.out == f"{out}: LlamaForCausalLM, 0.01 M parameters in float32\n"
    store.verify_folder(out)
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md", "manifest.json",
    }  # fmt: skip
    assert (best / "method.safetensors").exists()
    exported = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(exported), logits(load_causal_lm(str(best))), rtol=0, atol=1e-5)
    assert (logits(exported) - logits(load_causal_lm(str(world / "small")))).abs().max() > 1e-2
    assert len(AutoTokenizer.from_pretrained(out)) == exported.config.vocab_size
    ours, theirs = scores(world, folder, tmp_path / "a"), scores(world, out, tmp_path / "b")
    assert ours == theirs
    lines = [store.read_jsonl(tmp_path / at / "questions" / "seed10" / "predictions.jsonl") for at in ("a", "b")]
    assert lines[0] == lines[1] and any(line["prediction"] for line in lines[0])


def test_the_scores_of_an_adapter_are_not_used_again_for_another_base(tmp_path: Path, world: Path) -> None:
    toy.write_model(tmp_path / "base", 1)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    adapters.save(load_causal_lm(str(tmp_path / "base"), lora={"r": 2}, seed=0), adapter)
    from stillhouse.rollout.author import identify

    before = identify(str(adapter))
    assert identify(str(adapter)) == before
    toy.write_model(tmp_path / "base", 2)
    assert identify(str(adapter)) != before


@TIED
@pytest.mark.parametrize(
    "lora",
    [
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"use_dora": True},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_a_merged_adapter_is_equal_even_where_the_base_ties_its_head(
    world: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    model = load_causal_lm(str(world / "small"), lora={"r": 2, **lora}, seed=0)
    assert model.config.tie_word_embeddings
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    (tmp_path / "adapter").mkdir()
    adapters.save(model, tmp_path / "adapter")
    kept = load_causal_lm(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(kept), logits(model), rtol=0, atol=1e-6)
    out = export(ExportOptions(model=str(tmp_path / "adapter"), out=str(tmp_path / "out")))
    exported = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(exported), logits(model), rtol=0, atol=1e-5)
    apart = any("lm_head" in str(value) or "embed" in str(value) for value in lora.values())
    assert exported.config.tie_word_embeddings is not apart
    again = export(ExportOptions(model=str(out), out=str(tmp_path / "again")))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(again)), logits(exported), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adapter", "whole"])
def test_weights_are_cast_once(world: Path, tmp_path: Path, name: str) -> None:
    folder = world / "outputs" / "small" / "taid" / name
    out = export(ExportOptions(model=str(folder), out=str(tmp_path / "out"), dtype="bfloat16"))
    plain = export(ExportOptions(model=str(folder), out=str(tmp_path / "plain")))
    with safe_open(out / "model.safetensors", "pt") as cast, safe_open(plain / "model.safetensors", "pt") as full:
        assert cast.keys() == full.keys()
        for key in full.keys():  # noqa: SIM118 (safe_open is no dictionary)
            assert torch.equal(cast.get_tensor(key), full.get_tensor(key).bfloat16())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


def test_the_card_says_where_the_model_comes_from(world: Path, tmp_path: Path) -> None:
    folder = world / "outputs" / "small" / "taid" / "adapter"
    scores(world, folder, folder / "evaluation")
    card = (export(ExportOptions(model=str(folder), out=str(tmp_path / "my-model"))) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    best = store.read_json(folder / "finished.json")
    for said in (
        "\n# my-model\n",
        f"`{world / 'small'}`, trained on `{world / 'train.jsonl'}` with the teacher `{world / 'large'}`. Method: ",
        "Shing et al.",
        "lora:\n  r: 4\n",
        "learning_rate: 0.3\n",
        f"| development | loss a token | {best['loss']:.4f} |",
        f"| development | ROUGE-L | {best['rougeL']:.2f} |",
        "| questions | ROUGE-L | ",
        "## Licence\n\nNone is given here.",
    ):
        assert said in card, said
    assert "license" not in card
    assert card.count("| development | loss a token |") == 1  # of the checkpoint's own step
    last = (export(ExportOptions(model=str(folder / "last"), out=str(tmp_path / "last"))) / "README.md").read_text()
    assert (
        "| development | loss a token | " in last and "| questions | " not in last
    )  # these were of the best checkpoint
    bare = (export(ExportOptions(model=str(world / "small"), out=str(tmp_path / "bare"))) / "README.md").read_text()
    assert "From `" in bare and "## Settings" not in bare and "## Scores" not in bare


def test_nothing_is_overwritten_unasked_and_nothing_foreign_at_all(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(ExportOptions(model=str(world / "small"), out=str(out)))
    with pytest.raises(Mistake, match=r"out: '.*' is there already; give another --out, or --overwrite=true"):
        export(ExportOptions(model=str(world / "large"), out=str(out)))
    export(ExportOptions(model=str(world / "large"), out=str(out), overwrite=True))
    assert load_causal_lm(str(out)).config.hidden_size == 24
    with pytest.raises(Mistake, match=r"holds files without a manifest.json, not ours to replace"):
        export(ExportOptions(model=str(world / "large"), out=str(world / "small"), overwrite=True))


def test_a_checkpoint_that_does_not_verify_and_a_dtype_that_is_too_small_are_refused(
    world: Path, tmp_path: Path
) -> None:
    out = export(ExportOptions(model=str(world / "small"), out=str(tmp_path / "out")))
    (out / "config.json").write_text((out / "config.json").read_text().replace("16", "17", 1))
    with pytest.raises(store.Corrupt, match=r"config.json"):
        export(ExportOptions(model=str(out), out=str(tmp_path / "again")))
    model = load_causal_lm(str(world / "small"), lora={"r": 2}, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e6)
    (tmp_path / "adapter").mkdir()
    adapters.save(model, tmp_path / "adapter")
    with pytest.raises(Mistake, match=r"dtype: float16 cannot hold the merged weights; write bfloat16 or float32"):
        export(ExportOptions(model=str(tmp_path / "adapter"), out=str(tmp_path / "half"), dtype="float16"))
    assert not (tmp_path / "half").exists()
