"""One run, top to bottom: recipe, folder, data, models, trainer, done."""

from __future__ import annotations

import time
from pathlib import Path

from transformers import PreTrainedTokenizerBase, TrainingArguments

from stillhouse import store
from stillhouse.model_folders import epoch_folders
from stillhouse.models import quiet_loading
from stillhouse.recipe import Recipe
from stillhouse.training import processes
from stillhouse.training.arguments import training_arguments
from stillhouse.training.folder import RunFolder
from stillhouse.training.log import close_log, logger, open_log
from stillhouse.training.preflight import check_models, check_sharding, tokenizer_of
from stillhouse.training.prepare import prepare


def run(recipe: Recipe) -> Path:
    """Train what `recipe` says, or go on where an interrupted run of it stopped.

    Returns:
        The run's folder; `finished.json` in it says that the run is complete.

    Raises:
        Mistake: anything that the user can mend, before any weights load where it can be known by then.
    """
    quiet_loading()
    tokenizer, remarks = tokenizer_of(recipe)
    check_models(recipe, tokenizer)
    arguments = training_arguments(recipe)
    processes.check(arguments)
    check_sharding(recipe, arguments)
    folder = processes.by_first(lambda: RunFolder.open(recipe))
    handlers = open_log(folder.path)
    try:
        for remark in remarks:
            logger.info(remark)
        return _run(recipe, folder, tokenizer, arguments)
    finally:
        close_log(handlers)


def _run(recipe: Recipe, folder: RunFolder, tokenizer: PreTrainedTokenizerBase, arguments: TrainingArguments) -> Path:
    started = time.perf_counter()
    logger.info(f"{recipe.method['name']} -> {folder.path}")
    trainer = prepare(recipe, folder.path, tokenizer, arguments).trainer
    if processes.is_first():
        store.write_json(folder.path / "args.json", arguments.to_dict())
    if folder.resume_from is not None:
        logger.info(f"going on from {folder.resume_from}")
    trainer.train(resume_from_checkpoint=None if folder.resume_from is None else str(folder.resume_from))
    best = epoch_folders(folder.path)[0]
    summary = {"steps": trainer.state.global_step, "best": best.path.name, "loss": best.loss, "rougeL": best.rouge}
    processes.by_first(lambda: folder.finish(summary))
    logger.info(f"finished in {time.perf_counter() - started:.0f} s; best: {best.path}")
    return folder.path
