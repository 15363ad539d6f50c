"""From a recipe to transformers.TrainingArguments; building them joins the group of processes."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import TrainingArguments

from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe

_OURS = {"parity", "stop_after_skipped", "param_groups"}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The Trainer's own arguments: what the recipe says over what Stillhouse decides.

    Raises:
        Mistake: values that the Trainer refuses.
    """
    given = {key: value for key, value in recipe.training.items() if key not in _OURS}
    options: dict[str, Any] = {
        "disable_tqdm": not sys.stderr.isatty(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # else processes without a GPU form no group, silently
        "ddp_find_unused_parameters": False,  # every parameter of student and method is used at every step
        "logging_nan_inf_filter": False,  # it would wait for the device at every step
        **given,
        "output_dir": str(recipe.folder),
        "run_name": recipe.run_name,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "eval_strategy": "epoch" if recipe.data.eval is not None else "no",
        "save_strategy": "epoch",
        "remove_unused_columns": False,
    }
    try:
        arguments = TrainingArguments(**options)
        _ = arguments.device  # here the processes meet
    except (ValueError, TypeError, ImportError) as error:
        raise Mistake("training", str(error)) from error
    return arguments
