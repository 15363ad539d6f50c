"""One run, top to bottom: recipe, folder, data, models, trainer, done."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

from stillhouse import store
from stillhouse.data.collate import Collator
from stillhouse.data.encode import EncodedDataset, Limits, encode_all
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.templates import Template
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import pad_id
from stillhouse.head import probe
from stillhouse.methods import Method
from stillhouse.methods import build as build_method
from stillhouse.mistakes import Mistake
from stillhouse.models import last_hidden, load_causal_lm, quiet_loading
from stillhouse.recipe import Recipe
from stillhouse.teacher import LiveTeacher
from stillhouse.training.checkpoints import epoch_folders
from stillhouse.training.dev import DevSet
from stillhouse.training.distiller import Distiller
from stillhouse.training.folder import RunFolder
from stillhouse.training.log import Progress, RunLog, close_log, logger, open_log
from stillhouse.training.preflight import check_models, tokenizer_of
from stillhouse.training.trainer import DistillationTrainer


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
    folder = RunFolder.open(recipe)
    handlers = open_log(folder.path)
    try:
        for remark in remarks:
            logger.info(remark)
        return _run(recipe, folder, tokenizer)
    finally:
        close_log(handlers)


def _run(recipe: Recipe, folder: RunFolder, tokenizer: PreTrainedTokenizerBase) -> Path:
    started = time.perf_counter()
    logger.info(f"{recipe.method['name']} -> {folder.path}")
    data = recipe.data
    template = build_template(data.template, tokenizer)
    limits = Limits(data.max_length, data.max_prompt_length, data.cut, data.bos, data.scored)
    collator = Collator(pad_id(tokenizer), pad_to=data.max_length if data.pad_to_max_length else None)
    rows = read_rows(data.train, split=data.train_split, limit=data.limit)
    train = _encoded(data.train, rows, template, tokenizer, limits)
    dev = _dev_set(recipe, template, tokenizer, limits, collator)
    distiller = _distiller(recipe, tokenizer)
    logger.info(
        f"student: {_millions(distiller.student)}"
        + (f"; teacher: {_millions(distiller.teacher.model)}" if distiller.teacher else "")
    )
    arguments = _arguments(recipe, folder.path, evaluates=dev is not None)
    store.write_json(folder.path / "args.json", arguments.to_dict())
    trainer = DistillationTrainer(
        distiller,
        arguments,
        tokenizer,
        evaluate=dev,
        keep_best_of=recipe.evaluation.keep_best,
        parity=recipe.training["parity"],
        data_collator=collator,
        train_dataset=train,
        eval_dataset=None if dev is None else dev.encoded,
        callbacks=[RunLog(folder.path)],
    )
    _own_progress(trainer)
    if trainer.accelerator.num_processes > 1:
        raise Mistake("", "more than one process is not supported yet", "start it with plain python")
    if folder.resume_from is not None:
        logger.info(f"going on from {folder.resume_from}")
    trainer.train(resume_from_checkpoint=None if folder.resume_from is None else str(folder.resume_from))
    best = epoch_folders(folder.path)[0]
    folder.finish({"steps": trainer.state.global_step, "best": best.path.name, "loss": best.loss, "rougeL": best.rouge})
    logger.info(f"finished in {time.perf_counter() - started:.0f} s; best: {best.path}")
    return folder.path


def _encoded(
    source: str, rows: list[Row], template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> EncodedDataset:
    examples = [example for row in rows for example in template.examples(row)]
    encoded, census = encode_all(examples, tokenizer, limits)
    for line in census.lines():
        logger.info(f"{source}: {line}")
    return encoded


def _dev_set(
    recipe: Recipe, template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits, collator: Collator
) -> DevSet | None:
    data = recipe.data
    if data.eval is None:
        return None
    rows = read_rows(data.eval, split=data.eval_split, limit=data.eval_limit)
    encoded = _encoded(data.eval, rows, template, tokenizer, limits)
    batch_size = int(recipe.training.get("per_device_eval_batch_size", recipe.training["per_device_train_batch_size"]))
    return DevSet(encoded, rows, tokenizer, template, limits, collator, recipe.evaluation, batch_size)


def _distiller(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Distiller:
    settings = {key: value for key, value in recipe.method.items() if key != "name"}
    method: Method = build_method(recipe.method["name"], **settings)
    of_student = recipe.student
    student = load_causal_lm(
        of_student.model,
        dtype=of_student.dtype,
        from_scratch=of_student.from_scratch,
        config=of_student.config,
        attn_implementation=of_student.attn_implementation,
        trust_remote_code=of_student.trust_remote_code,
        seed=recipe.seed,
    )
    probe(student, last_hidden)
    teacher = None
    if method.needs_teacher and recipe.teacher is not None:
        model = load_causal_lm(
            recipe.teacher.model,
            dtype=recipe.teacher.dtype,
            attn_implementation=recipe.teacher.attn_implementation,
            trust_remote_code=recipe.teacher.trust_remote_code,
        )
        probe(model, last_hidden)
        teacher = LiveTeacher(model, len(tokenizer))
    set_seed(recipe.seed)
    return Distiller(student, method, teacher, len(tokenizer))


def _arguments(recipe: Recipe, folder: Path, *, evaluates: bool) -> TrainingArguments:
    ours = {"parity"}
    given = {key: value for key, value in recipe.training.items() if key not in ours}
    quiet = not sys.stderr.isatty()
    options: dict[str, Any] = {
        "disable_tqdm": quiet,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "logging_nan_inf_filter": False,  # it would wait for the device at every step
        **given,
        "output_dir": str(folder),
        "run_name": recipe.run_name,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "eval_strategy": "epoch" if evaluates else "no",
        "save_strategy": "epoch",
        "remove_unused_columns": False,
    }
    try:
        return TrainingArguments(**options)
    except (ValueError, TypeError, ImportError) as error:
        raise Mistake("training", str(error)) from error


def _own_progress(trainer: DistillationTrainer) -> None:
    """Our log lines instead of the Trainer's; its bar only on a terminal."""
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)


def _millions(model: Any) -> str:
    return f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"
