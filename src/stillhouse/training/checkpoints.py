"""What a checkpoint holds, and which ones are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stillhouse import adapters, store
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import METHOD_WEIGHTS, epoch_folder, epoch_folders
from stillhouse.training.distiller import Distiller

LAST = "last"
State = dict[str, torch.Tensor]


def save_weights(
    folder: Path, distiller: Distiller, tokenizer: PreTrainedTokenizerBase, gathered: State | None = None
) -> None:
    """Write the student, loadable by `AutoModelForCausalLM.from_pretrained`, its tokenizer, and the method's state.

    Of a student with an adapter, only that is written, loadable by `peft.AutoPeftModelForCausalLM.from_pretrained`.
    `gathered` is the distiller's whole state where its modules hold shards of it.
    """
    if adapters.is_adapted(distiller.student):
        adapters.save(distiller.student, folder, _part(gathered, "student."))
    else:
        whole = _part(gathered, "student.")
        if whole is not None:  # gathering gives a tied weight under both of its names
            whole = {
                name: value for name, value in whole.items() if name not in distiller.student.all_tied_weights_keys
            }
        distiller.student.save_pretrained(folder, state_dict=whole)
    tokenizer.save_pretrained(folder)
    state = _part(gathered, "method.") if gathered is not None else distiller.method.state_dict()
    state = {name: value.contiguous() for name, value in (state or {}).items()}
    if state:
        save_file(state, folder / METHOD_WEIGHTS)


def _part(gathered: State | None, prefix: str) -> State | None:
    if gathered is None:
        return None
    return {name.removeprefix(prefix): value for name, value in gathered.items() if name.startswith(prefix)}


def load_weights(folder: Path, distiller: Distiller) -> None:
    """Read back what `save_weights` wrote, into the modules that are there.

    Raises:
        Mistake: the folder lacks a weight, or has one that the model does not know.
    """
    if adapters.is_adapted(distiller.student):
        adapters.restore(distiller.student, folder)
    else:
        _load_student(folder, distiller.student)
    if (folder / METHOD_WEIGHTS).exists():
        distiller.method.load_state_dict(load_file(folder / METHOD_WEIGHTS))


def load_sharded(folder: Path, distiller: Distiller) -> None:
    """The same into modules whose parameters are shards (FSDP2): every process reads the whole and keeps its part.

    Raises:
        Mistake: the folder lacks a weight of an adapter, or has one that the adapter does not know.
    """
    student = distiller.student
    weights = adapters.saved_state(student, folder) if adapters.is_adapted(student) else _student_weights(folder)
    state: dict[str, Any] = {f"student.{name}": value for name, value in weights.items()}
    if (folder / METHOD_WEIGHTS).exists():
        state |= {f"method.{name}": value for name, value in load_file(folder / METHOD_WEIGHTS).items()}
    # Not strict: a tied head is under one of its names only, and below an adapter nothing is saved.
    set_model_state_dict(distiller, state, options=StateDictOptions(full_state_dict=True, strict=False))


def _student_weights(folder: Path) -> State:
    weights: State = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        weights.update(load_file(shard))
    return weights


def _load_student(folder: Path, student: PreTrainedModel) -> None:
    report = student.load_state_dict(_student_weights(folder), strict=False)
    absent = set(report.missing_keys) - _tied(student)
    if absent or report.unexpected_keys:
        odd = sorted(absent or report.unexpected_keys)[0]
        raise Mistake(str(folder), f"its weights are not this model's ('{odd}')", "resume with the recipe that made it")
    student.tie_weights()


def _tied(model: PreTrainedModel) -> set[str]:
    """Names of parameters that share storage with another one; a checkpoint holds only one of each."""
    seen: dict[int, str] = {}
    tied: set[str] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.data_ptr() in seen:
            tied |= {name, seen[parameter.data_ptr()]}
        seen.setdefault(parameter.data_ptr(), name)
    return tied


def keep_best(
    run: Path,
    name: str,
    distiller: Distiller,
    tokenizer: PreTrainedTokenizerBase,
    keep: int,
    gathered: State | None = None,
) -> None:
    """Write the epoch folder `name` if it is among the best `keep`, and remove those that no longer are."""
    newcomer = epoch_folder(run / name)
    assert newcomer is not None, name
    ranked = sorted({*epoch_folders(run), newcomer}, key=lambda kept: kept.rank, reverse=True)
    if newcomer in ranked[:keep]:
        with store.write_folder(run / name) as folder:
            save_weights(folder, distiller, tokenizer, gathered)
    for loser in ranked[keep:]:
        if loser != newcomer:
            store.remove_folder(loser.path)
