"""`--dry-run`: everything is checked and counted, one step is taken, and nothing is left behind."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from stillhouse.head import Blocks, Head
from stillhouse.models import quiet_loading
from stillhouse.recipe import Recipe
from stillhouse.teacher import elements, held
from stillhouse.training import processes
from stillhouse.training.arguments import training_arguments
from stillhouse.training.log import close_log, logger, open_log
from stillhouse.training.preflight import check_models, check_sharding, check_window, tokenizers_of
from stillhouse.training.prepare import Prepared, prepare

GIB = 2.0**30
# Bytes of activations that a transformer layer keeps for its backward, a token and hidden unit, in 16 bits, attention's
# square left out (Korthikanti et al., 2022, arXiv:2205.05198); with recomputation only its input stays.
KEPT, KEPT_RECOMPUTED = 34, 2
# Bytes a row and token of the vocabulary while one is drawn: logits, their logarithms and probabilities in fp32, and
# the distribution and its sums in fp64.
DRAWN = 3 * 4 + 2 * 8


def rehearse(recipe: Recipe) -> None:
    """Say what training `recipe` would be, take its first step in a folder that is thrown away, and say how that went.

    Raises:
        Mistake: as a run would.
    """
    quiet_loading()
    tokenizers, remarks = tokenizers_of(recipe)
    check_models(recipe, tokenizers)
    arguments = training_arguments(recipe)
    processes.check(arguments)
    check_sharding(recipe, arguments)
    check_window(recipe, arguments)
    planned = arguments.max_steps
    arguments.max_steps, arguments.save_strategy, arguments.eval_strategy = 1, IntervalStrategy.NO, IntervalStrategy.NO
    with tempfile.TemporaryDirectory(prefix="stillhouse-dry-run-") as scratch:
        folder = Path(scratch)
        arguments.output_dir = str(folder)
        handlers = open_log(folder)
        try:
            for remark in remarks:
                logger.info(remark)
            prepared = prepare(_quickly(recipe), folder, tokenizers, arguments)
            for line in _plan(recipe, prepared, arguments, planned):
                logger.info(line)
            if prepared.trainer.on_policy is not None:
                prepared.trainer.on_policy.deciding.insists = True
                logger.info("dry run: the student writes in this step, whatever rollout would draw")
            began = time.perf_counter()
            prepared.trainer.train()
            logger.info(
                f"one step took {time.perf_counter() - began:.1f} s; peak memory so far {_peak() / GIB:.2f} GiB"
            )
            logger.info("dry run: nothing was written")
        finally:
            close_log(handlers)


def _quickly(recipe: Recipe) -> Recipe:
    """`recipe`, but the teacher does not answer a whole data set for one step."""
    if recipe.source != "teacher":
        return recipe
    logger.info("dry run: the data set's own responses stand for the teacher's, which are not written")
    teacher = recipe.teacher if recipe.entry.needs_teacher else None
    return replace(recipe, rollout={"source": "dataset"}, teacher=teacher)


def _plan(recipe: Recipe, prepared: Prepared, arguments: TrainingArguments, planned: int) -> list[str]:
    train, budget = prepared.train, prepared.trainer.budget
    micro = arguments.per_device_train_batch_size if budget is None else round(len(train) / len(budget.batches), 1)
    a_step = micro * arguments.gradient_accumulation_steps * arguments.world_size
    batches = math.ceil(len(train) / micro) if budget is None else len(budget)
    an_epoch = math.ceil(batches / (arguments.gradient_accumulation_steps * arguments.world_size))
    steps = planned if planned > 0 else math.ceil(an_epoch * arguments.num_train_epochs)
    tokens = len(train.input_ids) / len(train)  # of an example
    scored = float(train.scored.sum()) / len(train)
    flops = _flops(prepared, tokens * a_step, scored * a_step)
    parts = _memory(recipe, prepared, arguments, tokens * micro)
    listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size >= 0.005 * GIB)
    lines = [
        f"{steps} steps of {a_step} examples ({micro} x {arguments.gradient_accumulation_steps} accumulated x "
        f"{arguments.world_size} processes), {an_epoch} an epoch",
        f"an example has {tokens:.0f} tokens, {scored:.0f} of them scored ({100 * scored / tokens:.0f}%)",
        f"a step is about {flops / 1e12:.3g} TFLOP",
        f"a process needs about {sum(parts.values()) / GIB:.2f} GiB: {listed or 'all parts small'}",
    ]
    if writing := _writing(recipe, prepared, arguments):
        kept = sum(parts[name] for name in ("student", "optimizer", "teacher") if name in parts)
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in writing.items())
        lines.append(
            f"while the student writes, it needs about {(kept + sum(writing.values())) / GIB:.2f} GiB: models and "
            f"optimizer {kept / GIB:.2f}, {listed}"
        )
    return lines


def _size(module: nn.Module, *, trained: bool = False) -> int:
    return sum(elements(p) for p in module.parameters() if p.requires_grad or not trained)


def _flops(prepared: Prepared, tokens: float, scored: float) -> float:
    """Matrix products of one step: 6 a trained parameter and token, 2 a frozen one; heads at scored positions only."""
    distiller = prepared.distiller
    head = Head.of(distiller.student).weight
    body = _size(distiller.student) - head.numel()
    total = 6.0 * body * tokens + 6.0 * head.numel() * scored
    if distiller.teacher is not None:
        theirs = distiller.teacher.head().weight.numel()
        total += 2.0 * (_size(distiller.teacher.model) - theirs) * tokens + 2.0 * theirs * scored
    return total


def _memory(recipe: Recipe, prepared: Prepared, arguments: TrainingArguments, tokens: float) -> dict[str, float]:
    """Bytes of one process, by what needs them; of shards, its part."""
    distiller, trainer = prepared.distiller, prepared.trainer
    shards = arguments.world_size if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else 1
    trained = _size(distiller, trained=True)
    width = next(distiller.student.parameters()).element_size()
    config = distiller.student.config.get_text_config()
    activation = 2 if arguments.bf16 or arguments.fp16 else width
    kept = (
        KEPT_RECOMPUTED if arguments.gradient_checkpointing or recipe.training.get("activation_checkpointing") else KEPT
    )
    head = Head.of(distiller.student).weight
    rows = (distiller.method.blocks or Blocks.on(arguments.device)).rows
    sides = 1 if distiller.teacher is None else 2
    parts = {
        "student": _size(distiller.student) * width / shards,
        "gradients": trained * width / shards,
        "optimizer": 2.0 * trained * width / shards,
        "activations": tokens * config.hidden_size * config.num_hidden_layers * kept * activation / 2,
        "logits": sides * rows * head.shape[0] * activation + (4.0 * head.numel() if head.requires_grad else 0.0),
    }
    if distiller.teacher is not None:
        parts["teacher"] = sum(held(p).nbytes for p in distiller.teacher.model.parameters())
    return parts


def _writing(recipe: Recipe, prepared: Prepared, arguments: TrainingArguments) -> dict[str, float]:
    """Bytes of one process beside models and optimizer while its student writes; nothing where it does not, here."""
    options = recipe.rollout or {}
    if prepared.trainer.on_policy is None or options["server"] != "none" or options.get("written", "none") != "none":
        return {}
    data, distiller = recipe.data, prepared.distiller
    written = options.get("window", 0) // arguments.world_size
    written = written or arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    at_once = min(options["batch_size"], written)
    longest = min(data.max_length, data.max_prompt_length + (options["max_new_tokens"] or data.max_length))
    width = next(distiller.student.parameters()).element_size()
    activation = 2 if arguments.bf16 or arguments.fp16 else width
    writers: list[tuple[Any, int]] = [(distiller.student, activation)]
    if options.get("teacher_mix", 0.0) and distiller.teacher is not None:
        writers.append((distiller.teacher.model, activation))
    return {
        "cache": float(sum(at_once * longest * _cached(model.config) * size for model, size in writers)),
        "draws": float(at_once * Head.of(distiller.student).weight.shape[0] * DRAWN),
    }


def _cached(config: Any) -> int:
    """Numbers that a model keeps of every token: keys and values of all layers."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    of_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * of_head


def _peak() -> float:
    """The most memory that was in use: the accelerator's, else the process's."""
    if torch.accelerator.is_available():
        return float(torch.accelerator.max_memory_allocated())
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(kib) * (1 if sys.platform == "darwin" else 1024)
