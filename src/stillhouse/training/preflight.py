"""Everything about a model pair that can be wrong, found before any weights load."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase, TrainingArguments

from stillhouse.catalogue import METHODS
from stillhouse.data.tokenizer import load_tokenizer, same_vocabulary
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import remark
from stillhouse.models import check_lora, check_room, load_config
from stillhouse.recipe import Recipe
from stillhouse.recipe.check import check_adapter
from stillhouse.training import processes


class Tokenizers(NamedTuple):
    """Those of a run.

    Attributes:
        student: the student's.
        teacher: the teacher's, where it is not the student's, or its ids are wanted all the same; None: ids are shared.
    """

    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase | None = None


def tokenizers_of(recipe: Recipe) -> tuple[Tokenizers, list[str]]:
    """Both sides' tokenizers, and remarks for the log.

    Raises:
        Mistake: no tokenizer.
    """
    student = recipe.student
    tokenizer = load_tokenizer(student.tokenizer or student.model, trust_remote_code=student.trust_remote_code)
    models = [student.model] if recipe.teacher is None else [student.model, recipe.teacher.model]
    remarks = [said for model in models if (said := remark(model)) is not None]
    if recipe.teacher is not None:
        named = recipe.teacher.tokenizer or recipe.teacher.model
        theirs = load_tokenizer(named, trust_remote_code=recipe.teacher.trust_remote_code)
        difference = same_vocabulary(tokenizer, theirs)
        if difference is not None:
            remarks.append(f"the teacher has a tokenizer of its own ({difference})")
        if difference is not None and recipe.entry.one_tokenizer:
            wrong = f"has a tokenizer of its own ({difference}), and {recipe.entry.name} compares token by token"
            raise Mistake("teacher.model", wrong, "take gkd or distillm")
        if difference is not None or recipe.two_sided:
            return Tokenizers(tokenizer, theirs), remarks
        if tokenizer.eos_token_id != theirs.eos_token_id:
            remarks.append(
                f"a text ends with {tokenizer.eos_token} for the student and {theirs.eos_token} for the teacher; "
                "responses end with the student's"
            )
    return Tokenizers(tokenizer), remarks


def check_models(recipe: Recipe, tokenizers: Tokenizers) -> None:
    """Compare both configurations with their tokenizers, the lengths and the device, and an adapter with its model.

    Raises:
        Mistake: too few embeddings, too few positions, a dtype that the device lacks, or an adapter that does not fit.
    """
    check_adapter(recipe)
    _check_quantize(recipe)
    overrides = dict(recipe.student.config) if recipe.student.from_scratch else None
    student = load_config(recipe.student.model, overrides=overrides, trust_remote_code=recipe.student.trust_remote_code)
    _check_config("student", student, recipe, tokenizers.student)
    if recipe.teacher is not None and METHODS[recipe.method["name"]].needs_teacher:
        teacher = load_config(recipe.teacher.model, trust_remote_code=recipe.teacher.trust_remote_code)
        _check_config("teacher", teacher, recipe, tokenizers.teacher or tokenizers.student)
    _check_precision(recipe.training)
    if recipe.student.lora is not None:
        check_lora(recipe.student.model, recipe.student.lora, trust_remote_code=recipe.student.trust_remote_code)


def _check_config(side: str, config: Any, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    where, longest = f"{side}.model", recipe.data.max_length
    check_room(config, len(tokenizer), longest, model=where, length="data.max_length", who=f"the {side}")


def _check_quantize(recipe: Recipe) -> None:
    if recipe.student.quantize is None:
        return
    if not torch.accelerator.is_available() or recipe.training.get("use_cpu", False):
        raise Mistake("student.quantize", "needs an accelerator, and this machine has none", "remove it")
    if find_spec("bitsandbytes") is None:
        raise Mistake("student.quantize", "needs the package bitsandbytes", "pip install bitsandbytes")


def _check_precision(training: dict[str, Any]) -> None:
    on_gpu = torch.accelerator.is_available() and not training.get("use_cpu", False)
    if training.get("fp16") and not on_gpu:
        raise Mistake("training.fp16", "needs an accelerator, and this machine has none", "use bf16: true or neither")
    if training.get("bf16") and on_gpu and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise Mistake("training.bf16", "this GPU has no bfloat16", "use fp16: true or neither")


def check_sharding(recipe: Recipe, arguments: TrainingArguments) -> None:
    """What cannot be done with a student or a teacher that is cut into shards.

    Raises:
        Mistake: answers are to be generated in training, one process shall share a teacher with nobody, or DeepSpeed,
            which is not there, shall cut it.
    """
    if recipe.teacher is not None and recipe.teacher.shard != "none" and arguments.world_size == 1:
        wrong = "a single process has the whole teacher anyway"
        raise Mistake("teacher.shard", wrong, "write none, or start several: accelerate launch")
    if recipe.teacher is not None and recipe.teacher.shard == "zero3" and find_spec("deepspeed") is None:
        raise Mistake(
            "teacher.shard", "zero3 needs the package deepspeed", "pip install 'stillhouse[deepspeed]', or write fsdp"
        )
    sharded = processes.sharding(arguments)
    if sharded and recipe.on_policy:
        wrong = f"a student in shards ({sharded}) does not write while it trains"
        raise Mistake("rollout.source", wrong, "write dataset or teacher, or train with whole copies (DDP)")
    if sharded and recipe.data.eval is not None and recipe.evaluation.generate:
        raise Mistake(
            "evaluation.generate",
            f"a student in shards ({sharded}) does not write answers while it trains",
            "set it to false; stillhouse evaluate scores the checkpoints",
        )


def step_batch(arguments: TrainingArguments) -> int:
    """Examples of an optimizer step, of all processes together."""
    each = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return each * arguments.world_size


def check_window(recipe: Recipe, arguments: TrainingArguments) -> None:
    """The recipe knows what a process takes of a window in a step, but not how many there are.

    Raises:
        Mistake: the steps of all do not divide it.
    """
    size, batch = (recipe.rollout or {}).get("window", 0), step_batch(arguments)
    if size % batch:
        wrong = f"{size} is no multiple of the {batch} examples that {arguments.world_size} processes take in a step"
        raise Mistake("rollout.window", wrong, f"write {batch * (size // batch + 1)}")
