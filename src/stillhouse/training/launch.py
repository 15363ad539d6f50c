"""One run, top to bottom: recipe, folder, data, models, trainer, done."""

from __future__ import annotations

import time
from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from stillhouse import store
from stillhouse.model_folders import epoch_folders
from stillhouse.models import quiet_loading
from stillhouse.recipe import Recipe
from stillhouse.store.digests import of_file
from stillhouse.store.records import MANIFEST
from stillhouse.training import processes
from stillhouse.training.arguments import training_arguments
from stillhouse.training.folder import RunFolder
from stillhouse.training.log import close_log, logger, open_log
from stillhouse.training.preflight import Tokenizers, check_models, check_sharding, check_window, tokenizers_of
from stillhouse.training.prepare import prepare


def run(recipe: Recipe) -> Path:
    """Train what `recipe` says, or go on where an interrupted run of it stopped.

    Returns:
        The run's folder; `finished.json` in it says that the run is complete.

    Raises:
        Mistake: anything that the user can mend, before any weights load where it can be known by then.
    """
    quiet_loading()
    tokenizers, remarks = tokenizers_of(recipe)
    check_models(recipe, tokenizers)
    arguments = training_arguments(recipe)
    processes.check(arguments)
    check_sharding(recipe, arguments)
    check_window(recipe, arguments)
    folder = processes.by_first(lambda: RunFolder.open(recipe))
    handlers = open_log(folder.path)
    try:
        for remark in (*remarks, *folder.remarks):
            logger.info(remark)
        return _run(recipe, folder, tokenizers, arguments)
    finally:
        close_log(handlers)


def _run(recipe: Recipe, folder: RunFolder, tokenizers: Tokenizers, arguments: TrainingArguments) -> Path:
    started = time.perf_counter()
    logger.info(f"{recipe.method['name']} -> {folder.path}")
    trainer = prepare(recipe, folder.path, tokenizers, arguments).trainer
    if processes.is_first():
        store.write_json(folder.path / "args.json", arguments.to_dict())
    if folder.resume_from is None:
        trainer.train()
    else:
        logger.info(f"going on from {folder.resume_from}")
        state = TrainerState.load_from_json(str(folder.resume_from / TRAINER_STATE_NAME))
        if state.global_step < state.max_steps:
            trainer.train(resume_from_checkpoint=str(folder.resume_from))
        else:  # the Trainer looks only after a step whether it was the last one, and would take one more
            trainer.state = state
    best = epoch_folders(folder.path)[0]
    summary = {"steps": trainer.state.global_step, "best": best.path.name, "loss": best.loss, "rougeL": best.rouge}
    summary["xxh3"] = of_file(best.path / MANIFEST).xxh3  # of all its files: two runs may have their losses in common
    processes.by_first(lambda: folder.finish(summary))
    logger.info(f"finished in {time.perf_counter() - started:.0f} s; best: {best.path}")
    return folder.path
