"""What a checkpoint holds, and which ones are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse import store
from stillhouse.mistakes import Mistake
from stillhouse.training.distiller import Distiller

METHOD_FILE = "method.safetensors"
LAST = "last"
_NAME = re.compile(r"epoch(?P<epoch>\d+)_step(?P<step>\d+)(_loss(?P<loss>[\d.]+|inf|nan))?(_rougel(?P<rouge>[\d.]+))?$")


def save_weights(folder: Path, distiller: Distiller, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the student, loadable by `AutoModelForCausalLM.from_pretrained`, its tokenizer, and the method's state."""
    distiller.student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in distiller.method.state_dict().items()}
    if state:
        save_file(state, folder / METHOD_FILE)


def load_weights(folder: Path, distiller: Distiller) -> None:
    """Read back what `save_weights` wrote, into the modules that are there.

    Raises:
        Mistake: the folder lacks a weight, or has one that the model does not know.
    """
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        weights.update(load_file(shard))
    report = distiller.student.load_state_dict(weights, strict=False)
    absent = set(report.missing_keys) - _tied(distiller.student)
    if absent or report.unexpected_keys:
        odd = sorted(absent or report.unexpected_keys)[0]
        raise Mistake(str(folder), f"its weights are not this model's ('{odd}')", "resume with the recipe that made it")
    distiller.student.tie_weights()
    if (folder / METHOD_FILE).exists():
        distiller.method.load_state_dict(load_file(folder / METHOD_FILE))


def _tied(model: PreTrainedModel) -> set[str]:
    """Names of parameters that share storage with another one; a checkpoint holds only one of each."""
    seen: dict[int, str] = {}
    tied: set[str] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.data_ptr() in seen:
            tied |= {name, seen[parameter.data_ptr()]}
        seen.setdefault(parameter.data_ptr(), name)
    return tied


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
    found = [parsed for path in run.glob("epoch*_step*") if path.is_dir() and (parsed := _parsed(path))]
    return sorted(found, key=lambda kept: kept.rank, reverse=True)


def keep_best(run: Path, name: str, distiller: Distiller, tokenizer: PreTrainedTokenizerBase, keep: int) -> None:
    """Write the epoch folder `name` if it is among the best `keep`, and remove those that no longer are."""
    newcomer = _parsed(run / name)
    assert newcomer is not None, name
    ranked = sorted({*epoch_folders(run), newcomer}, key=lambda kept: kept.rank, reverse=True)
    if newcomer in ranked[:keep]:
        with store.write_folder(run / name) as folder:
            save_weights(folder, distiller, tokenizer)
    for loser in ranked[keep:]:
        if loser != newcomer:
            store.remove_folder(loser.path)


def _parsed(path: Path) -> EpochFolder | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    loss, rouge = (None if match[key] is None else float(match[key]) for key in ("loss", "rouge"))
    return EpochFolder(path, int(match["epoch"]), int(match["step"]), loss, rouge)
