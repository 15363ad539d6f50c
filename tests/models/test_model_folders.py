"""What a model's name stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse.mistakes import Mistake
from stillhouse.model_folders import base_of, epoch_folder, epoch_folders, epoch_name, find, is_run, remark


def run_of(folder: Path, *checkpoints: str) -> str:
    folder.mkdir()
    (folder / "recipe.yaml").write_text("seed: 10\n")
    for name in checkpoints:
        (folder / name).mkdir()
    return str(folder)


@pytest.mark.parametrize(
    ("checkpoints", "best"),
    [
        (["epoch1_step3", "epoch2_step6", "last"], "epoch2_step6"),
        (["epoch1_step3_loss2.0000", "epoch2_step6_loss2.5000"], "epoch1_step3_loss2.0000"),
        (["epoch1_step3_loss2.0000_rougel20.0000", "epoch2_step6_loss2.5000_rougel21.0000"],
         "epoch2_step6_loss2.5000_rougel21.0000"),
        (["epoch1_step3_loss2.0000_rougel20.0000", "epoch2_step6_loss2.5000_rougel3.0000"],
         "epoch1_step3_loss2.0000_rougel20.0000"),
    ],
)  # fmt: skip
def test_a_run_is_its_best_checkpoint(tmp_path: Path, checkpoints: list[str], best: str) -> None:
    run = run_of(tmp_path / "run", *checkpoints)
    assert is_run(run)
    assert find(run) == f"{run}/{best}" == str(epoch_folders(Path(run))[0].path)
    assert remark(run) == f"{run} is a run; its best checkpoint is used: {best}"


def test_any_other_name_is_its_own(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "recipe.yaml").write_text("")  # beside a model it makes no run
    (model / "config.json").write_text("{}")
    for name in (str(model), "gpt2", "owner/model", str(tmp_path / "nothing")):
        assert find(name) == name and remark(name) is None and base_of(name) is None


def test_a_run_without_a_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match=r"^there: the run in '.*' has no checkpoint yet; let it end its first epoch$"):
        find(run_of(tmp_path / "run", "last"), "there")


def test_names_of_epochs_are_read_as_they_are_written() -> None:
    name = epoch_name(3, 1050, {"eval_loss": 2.1034, "eval_rougeL": 27.441})
    assert name == "epoch3_step1050_loss2.1034_rougel27.4410"
    kept = epoch_folder(Path(name))
    assert kept is not None
    assert (kept.epoch, kept.step, kept.loss, kept.rouge) == (3, 1050, 2.1034, 27.441)
    assert epoch_folder(Path("last")) is None and epoch_folder(Path("epoch3_step4.previous")) is None


@pytest.mark.parametrize("named", ["base", "../base", "owner/base", "run"])
def test_the_base_of_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = Path("folder") / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_text("-")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": named}))
    (Path("folder") / "base").mkdir()
    run_of(Path("run"), "epoch1_step3")
    found = {"base": "base", "../base": "folder/adapter/../base", "owner/base": "owner/base", "run": "run/epoch1_step3"}
    assert base_of(str(adapter)) == found[named]
