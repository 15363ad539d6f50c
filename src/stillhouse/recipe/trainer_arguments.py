"""The `training` section: transformers.TrainingArguments' own names, checked without importing transformers.

Names, types and choices are read from the source of the installed transformers, so that a recipe follows the version
that will train it, and a misspelt name is refused in a fraction of a second instead of after the import.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.mistakes import Mistake, unknown_name
from stillhouse.recipe import param_groups
from stillhouse.recipe.section import Bounds, typed

DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.0,
    "max_grad_norm": 1.0,
    "bf16": False,
    "fp16": False,
    "logging_steps": 10.0,
    "dataloader_num_workers": 0,
    "report_to": "none",
    "parity": False,
    "stop_after_skipped": 5,
}

# Official loops whose groups, learning rates and reduction can be had: `training.parity`.
PARITIES = ("dskd", "taid")

_PER_EPOCH = "Stillhouse evaluates and keeps checkpoints once an epoch; training.save_steps refreshes last/ between"
_OWN_RESUME = "give the same command again: a run goes on where it stopped"
_OWN_LOSS = "Stillhouse takes the one mean over all scored tokens itself; leave it out"
_NO_HUB = "Stillhouse uploads nothing; push the finished folder yourself"

# Names of TrainingArguments, now or in older versions, that Stillhouse decides itself -> what to write instead.
RESERVED: dict[str, str] = {
    "output_dir": "write 'output' at the top of the recipe",
    "overwrite_output_dir": "write 'overwrite' at the top of the recipe",
    "seed": "write 'seed' at the top of the recipe",
    "data_seed": "write 'seed' at the top of the recipe",
    "run_name": "write 'name' at the top of the recipe",
    "warmup_ratio": "write it as training.warmup_steps: a number below 1 is a ratio",
    "label_smoothing_factor": "no method here smooths labels; leave it out",
    "label_names": "labels come from the data; leave it out",
    "remove_unused_columns": "batches are built by Stillhouse; leave it out",
    "length_column_name": "batches are built by Stillhouse; leave it out",
    "average_tokens_across_devices": _OWN_LOSS,
    "prediction_loss_only": _OWN_LOSS,
    "include_for_metrics": _OWN_LOSS,
    "batch_eval_metrics": _OWN_LOSS,
    "eval_do_concat_batches": _OWN_LOSS,
    "eval_use_gather_object": _OWN_LOSS,
    "eval_accumulation_steps": _OWN_LOSS,
    "load_best_model_at_end": "write evaluation.keep_best: the best checkpoints are kept",
    "metric_for_best_model": "the best is by ROUGE-L, or by dev loss with evaluation.generate: false",
    "greater_is_better": "the best is by ROUGE-L, or by dev loss with evaluation.generate: false",
    "save_total_limit": "write evaluation.keep_best",
    "save_strategy": _PER_EPOCH,
    "save_only_model": _PER_EPOCH,
    "save_on_each_node": _PER_EPOCH,
    "eval_strategy": _PER_EPOCH,
    "evaluation_strategy": _PER_EPOCH,
    "eval_steps": _PER_EPOCH,
    "eval_delay": _PER_EPOCH,
    "eval_on_start": _PER_EPOCH,
    "do_train": "run 'stillhouse sft' or 'stillhouse distill'",
    "do_eval": "give data.eval, or run 'stillhouse evaluate'",
    "do_predict": "run 'stillhouse generate'",
    "resume_from_checkpoint": _OWN_RESUME,
    "ignore_data_skip": _OWN_RESUME,
    "restore_callback_states_from_checkpoint": _OWN_RESUME,
    "enable_jit_checkpoint": _OWN_RESUME,
    "push_to_hub": _NO_HUB,
    "hub_token": _NO_HUB,
    "hub_private_repo": _NO_HUB,
    "hub_model_id": _NO_HUB,
    "hub_strategy": _NO_HUB,
    "hub_always_push": _NO_HUB,
    "hub_revision": _NO_HUB,
    "parallelism_config": "launch with accelerate, whose configuration file says it",
    "local_rank": "launch with torchrun or accelerate, which set it",
}

_POSITIVE, _NOT_NEGATIVE, _ONE_OR_MORE = Bounds(above=0), Bounds(low=0), Bounds(low=1)
_DECAY = Bounds(low=0, below=1)
BOUNDS: dict[str, Bounds] = {
    "learning_rate": _POSITIVE,
    "num_train_epochs": _POSITIVE,
    "per_device_train_batch_size": _ONE_OR_MORE,
    "per_device_eval_batch_size": _ONE_OR_MORE,
    "gradient_accumulation_steps": _ONE_OR_MORE,
    "weight_decay": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "logging_steps": _POSITIVE,
    "save_steps": _ONE_OR_MORE,
    "stop_after_skipped": _ONE_OR_MORE,
    "dataloader_num_workers": _NOT_NEGATIVE,
    "adam_beta1": _DECAY,
    "adam_beta2": _DECAY,
    "adam_epsilon": _POSITIVE,
}


@dataclass(frozen=True)
class Argument:
    """One field of TrainingArguments: its type, and its choices where it is an enumeration."""

    annotation: Any
    choices: tuple[str, ...] = ()


# What the section may say beyond TrainingArguments: an official loop to repeat, how many steps in a row may have
# numbers that are not finite before the run ends, and parameters that learn otherwise than the rest.
OURS = {
    "parity": Argument(bool | str),
    "stop_after_skipped": Argument(int),
    "param_groups": Argument(list[dict]),
}

_SIMPLE: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "None": None}


@functools.cache
def arguments() -> dict[str, Argument]:
    """Every field that a recipe may set: those of the installed TrainingArguments, less RESERVED, and OURS."""
    found = importlib.util.find_spec("transformers")
    folder = Path((found.submodule_search_locations or [""])[0]) if found else Path()
    classes = _classes(folder / "training_args.py")
    choices = {name: _members(node) for name, node in {**_classes(folder / "trainer_utils.py"), **classes}.items()}
    fields = {
        node.target.id: _argument(node.annotation, choices)
        for node in classes["TrainingArguments"].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name: field for name, field in fields.items() if name not in RESERVED} | OURS


def _classes(path: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _members(enumeration: ast.ClassDef) -> tuple[str, ...]:
    """The string values of an Enum class; those of any other class are never asked for."""
    values = [node.value for node in enumeration.body if isinstance(node, ast.Assign)]
    return tuple(value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str))


def _argument(annotation: ast.expr, choices: Mapping[str, tuple[str, ...]]) -> Argument:
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    enumeration = next((choices[name] for name in sorted(names & choices.keys())), ())
    return Argument(functools.reduce(operator.or_, _alternatives(annotation)), enumeration)


def _alternatives(annotation: ast.expr) -> list[Any]:
    """The simple types of a union; enumerations are written as text, anything stranger cannot be in a YAML file."""
    if isinstance(annotation, ast.BinOp):
        return [*_alternatives(annotation.left), *_alternatives(annotation.right)]
    if isinstance(annotation, ast.Constant):
        return [None]
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value)
        return [list[str] if outer == "list" else dict if outer == "dict" else bool]
    return [_SIMPLE.get(ast.unparse(annotation), str)]


def settle(training: Mapping[str, Any]) -> dict[str, Any]:
    """The whole `training` section: the given values, checked, over the defaults.

    Raises Mistake for an unknown, reserved or wrong value, and for values that contradict each other.
    """
    settled = DEFAULTS | {name: _checked(name, value) for name, value in training.items()}
    if settled["bf16"] and settled["fp16"]:
        raise Mistake("training.fp16", "bf16 and fp16 are both true", "keep one of them")
    if settled["max_steps"] == 0 or settled["max_steps"] < -1:
        raise Mistake("training.max_steps", f"must be at least 1, got {settled['max_steps']}", "-1 counts by epochs")
    if settled["parity"] is True:
        settled["parity"] = "dskd"  # what the word meant before there were two
    if settled["parity"]:
        if settled["parity"] not in PARITIES:
            raise unknown_name("training.parity", "official loop", str(settled["parity"]), PARITIES)
        for name in ("lr_scheduler_type", "warmup_steps"):
            if settled[name] != DEFAULTS[name]:
                raise Mistake(f"training.{name}", "parity sets the schedule: a cosine without warm-up", "leave it out")
    return settled


def _checked(name: str, value: Any) -> Any:
    where = f"training.{name}"
    if name in RESERVED:
        raise Mistake(where, "is not set here", RESERVED[name])
    if name not in arguments():
        raise unknown_name(where, "key", name, arguments())
    argument = arguments()[name]
    value = typed(argument.annotation, value, where)
    if argument.choices and isinstance(value, str) and value not in argument.choices:
        raise unknown_name(where, name, value, argument.choices)
    BOUNDS.get(name, Bounds()).check(value, where)
    if name == "param_groups" and isinstance(value, list):
        param_groups.check(value, where)
    return value
