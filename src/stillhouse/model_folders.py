"""What the name of a model stands for: weights, an adapter over other weights, a run's best checkpoint, or a Hub name.

Torch-free, so that a recipe can be checked by it. `find` is the one place that settles a name; every loader asks it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.mistakes import Mistake, shorten
from stillhouse.store.records import MANIFEST

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RECIPE = "recipe.yaml"
# What decides on a model's answers, of the files of its folder: weights, configuration, tokenizer, template, code.
_DECISIVE = {".safetensors", ".json", ".jinja", ".model", ".txt", ".py"}
METHOD_WEIGHTS = "method.safetensors"  # what a method has learnt and remembers, beside the student's weights
_NAME = re.compile(r"epoch(?P<epoch>\d+)_step(?P<step>\d+)(_loss(?P<loss>[\d.]+|inf|nan))?(_rougel(?P<rouge>[\d.]+))?$")


@dataclass(frozen=True)
class EpochFolder:
    """`epoch3_step1050_loss2.1034_rougel27.4410`: what its name says of a kept checkpoint."""

    path: Path
    epoch: int
    step: int
    loss: float | None
    rouge: float | None

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: ROUGE-L where it was measured, else the lower dev loss; then the later step."""
        if self.rouge is not None:
            return self.rouge, self.step
        return (-self.loss if self.loss is not None else 0.0), self.step


def epoch_name(epoch: int, step: int, metrics: Mapping[str, float]) -> str:
    """The folder name of a checkpoint with these evaluation metrics."""
    loss = f"_loss{metrics['eval_loss']:.4f}" if "eval_loss" in metrics else ""
    rouge = f"_rougel{metrics['eval_rougeL']:.4f}" if "eval_rougeL" in metrics else ""
    return f"epoch{epoch}_step{step}{loss}{rouge}"


def epoch_folders(run: Path) -> list[EpochFolder]:
    """The kept checkpoints of a run, best first."""
    found = [parsed for path in run.glob("epoch*_step*") if path.is_dir() and (parsed := epoch_folder(path))]
    return sorted(found, key=lambda kept: kept.rank, reverse=True)


def epoch_folder(path: Path) -> EpochFolder | None:
    """What the name of `path` says, or None where it is no epoch folder's."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    loss, rouge = (None if match[key] is None else float(match[key]) for key in ("loss", "rouge"))
    return EpochFolder(path, int(match["epoch"]), int(match["step"]), loss, rouge)


def is_run(name: str) -> bool:
    """Whether `name` is the folder of a run, which holds checkpoints but is none itself."""
    folder = Path(name)
    return (folder / RECIPE).is_file() and not any((folder / file).is_file() for file in (CONFIG, ADAPTER_CONFIG))


def find(name: str, where: str | None = None) -> str:
    """The model that `name` stands for: the best checkpoint of a run's folder; any other name is its own.

    Args:
        name: a model's folder, a run's folder, or a name on the Hub.
        where: what a Mistake names; by default `name`.

    Raises:
        Mistake: a run's folder without a checkpoint.
    """
    if not is_run(name):
        return name
    best = epoch_folders(Path(name))
    if not best:
        raise Mistake(where or name, f"the run in '{name}' has no checkpoint yet", "let it end its first epoch")
    return str(best[0].path)


def method_weights(name: str, where: str) -> Path:
    """The file of a method's weights that `name` stands for: a run's best checkpoint's, a checkpoint's, or itself.

    Raises:
        Mistake: there is none.
    """
    folder = Path(find(name, where))
    path = folder / METHOD_WEIGHTS if folder.is_dir() else folder
    if path.is_file():
        return path
    if folder.is_dir():
        raise Mistake(where, f"'{folder}' holds no {METHOD_WEIGHTS}", "name a run of a method that has projectors")
    raise Mistake(where, f"no file or folder '{name}'", f"name a run, a checkpoint of it, or its {METHOD_WEIGHTS}")


def remark(name: str) -> str | None:
    """One line for the user where `find` gives something else than `name`."""
    found = find(name)
    return None if found == name else f"{name} is a run; its best checkpoint is used: {Path(found).name}"


def decisive_files(folder: Path) -> list[Path]:
    """The files that decide on what the model in `folder` says: the manifest alone, which knows them, if it has one."""
    if (folder / MANIFEST).is_file():
        return [folder / MANIFEST]
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in _DECISIVE)


def base_of(name: str) -> str | None:
    """The model below the adapter in the folder `name`, or None where that holds no adapter.

    A relative base is looked for beside the adapter, then where the command is run; else it is a name on the Hub.

    Raises:
        Mistake: the adapter's configuration cannot be used, its weights are not there, or its base is not.
    """
    config = Path(name) / ADAPTER_CONFIG
    if not config.is_file() or (Path(name) / CONFIG).is_file():
        return None
    content = _read(config)
    kind = str(content.get("peft_type"))
    if kind.upper() != "LORA":
        raise Mistake(str(config), f"is an adapter of kind {kind}, and only LORA is read", "merge it into its model")
    if content.get("megatron_config"):  # peft would import the module that the file names
        raise Mistake(str(config), "has a megatron_config, which is not read", "remove it")
    if not (Path(name) / ADAPTER_WEIGHTS).is_file():
        pickled = any(Path(name).glob("*.bin"))
        wrong = "holds pickled weights (*.bin), which are not read" if pickled else f"holds no {ADAPTER_WEIGHTS}"
        raise Mistake(name, wrong, "save them as safetensors" if pickled else "is the folder whole?")
    return _base(config, content.get("base_model_name_or_path"))


def _read(config: Path) -> dict[str, Any]:
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise Mistake(str(config), f"cannot be read: {shorten(str(error), 80)}") from None
    if not isinstance(content, dict):
        raise Mistake(str(config), "is no adapter's configuration", "is the folder whole?")
    return content


def _base(config: Path, named: Any) -> str:
    if not isinstance(named, str) or not named:
        raise Mistake(str(config), "names no base model", "write its base_model_name_or_path")
    beside = config.parent / named
    base = find(str(beside) if beside.is_dir() else named)
    if (Path(base) / ADAPTER_CONFIG).is_file() and not (Path(base) / CONFIG).is_file():
        mend = "merge that one first: stillhouse export"
        raise Mistake(str(config), f"its base '{base}' is an adapter itself", mend)
    if Path(named).is_absolute() and not Path(base).is_dir():
        raise Mistake(str(config), f"its base model is not there: {named}", "mend base_model_name_or_path in it")
    return base
