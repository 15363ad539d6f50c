"""From a recipe to a trainer that is ready: data, models, method, guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainingArguments,
    set_seed,
)

from stillhouse import adapters
from stillhouse.data.collate import Collator, PackingCollator
from stillhouse.data.conversation import read
from stillhouse.data.encode import EncodedDataset, Limits, encode_all
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.templates import Template
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import pad_id
from stillhouse.head import Blocks, Head, probe
from stillhouse.methods import Method
from stillhouse.methods import build as build_method
from stillhouse.mistakes import Mistake
from stillhouse.models import head_without_weights, last_hidden, load_causal_lm
from stillhouse.paired import PairedCollator, PairedDataset
from stillhouse.recipe import Recipe
from stillhouse.rollout import end_of_turn
from stillhouse.rollout.replay import Rollout
from stillhouse.teacher import LiveTeacher, elements, shard, shard_by_zero
from stillhouse.training import processes
from stillhouse.training.budget import TokenBudget
from stillhouse.training.corpus import Corpus, read_corpus
from stillhouse.training.dev import DevSet
from stillhouse.training.distiller import Distiller
from stillhouse.training.guard import Guard
from stillhouse.training.log import Progress, RunLog, logger
from stillhouse.training.on_policy import OnPolicy
from stillhouse.training.packing import check_packing
from stillhouse.training.preflight import Tokenizers, step_batch
from stillhouse.training.rewriting import OwnTokens
from stillhouse.training.teacher_rows import written_by_teacher
from stillhouse.training.trainer import DistillationTrainer
from stillhouse.training.two_tokenizers import TwoTokenizers
from stillhouse.training.window import Window
from stillhouse.training.written_before import by_sample, written_before


@dataclass(frozen=True)
class Prepared:
    """What training needs, and what there is to say of it beforehand.

    Attributes:
        trainer: ready to train.
        train: the encoded training set.
        distiller: the bare module that the trainer wraps.
    """

    trainer: DistillationTrainer
    train: EncodedDataset
    distiller: Distiller


def prepare(recipe: Recipe, folder: Path, tokenizers: Tokenizers, arguments: TrainingArguments) -> Prepared:
    """Encode the data, load the models and build the trainer, which will write into `folder`.

    Raises:
        Mistake: a row, a model or an option is wrong.
    """
    data, tokenizer = recipe.data, tokenizers.student
    template = build_template(data.template, tokenizer)
    limits = Limits(data.max_length, data.max_prompt_length, data.cut, data.bos, data.scored)
    rows = read_rows(data.train, split=data.train_split, limit=data.limit)
    if recipe.source == "teacher":
        with processes.whole_weights(arguments):
            rows = written_by_teacher(recipe, rows, tokenizers, folder, arguments.device)
    if recipe.on_policy:
        _check_prompts(rows)
    rows, said = _answered(recipe, rows, template, tokenizer, limits)
    two = None if tokenizers.teacher is None else TwoTokenizers.of(recipe, tokenizer, tokenizers.teacher)
    if two is None:
        train = _encoded(data.train, rows, template, tokenizer, limits)
    else:
        train = two.encoded(recipe, rows, template, limits)
    dev = _dev_set(recipe, template, tokenizer, limits, _padding(recipe, tokenizer))
    with processes.whole_weights(arguments):
        _check_projectors(recipe, tokenizer, two)
        distiller = _distiller(recipe, tokenizer, two, arguments)
    logger.info(
        f"student: {_millions(distiller.student)}"
        + (f"; teacher: {_millions(distiller.teacher.model)}" if distiller.teacher else "")
    )
    if arguments.world_size > 1:
        logger.info(f"{arguments.world_size} processes, {arguments.parallel_mode.value}")
    collator, items = _collator(recipe, tokenizer, two, distiller.method), None
    if recipe.on_policy:
        items = OwnTokens(train) if two is None else two.own_text(recipe, rows, template, limits, train)
    origins = dict(zip(train.samples.tolist(), train.origins, strict=True))
    trainer = DistillationTrainer(
        distiller,
        arguments,
        tokenizer,
        evaluate=dev,
        keep_best_of=recipe.evaluation.keep_best,
        parity=recipe.training["parity"],
        guard=Guard(origins, recipe.training["stop_after_skipped"]),
        save_every=recipe.training.get("save_steps"),
        budget=_budget(recipe, train, arguments),
        param_groups=recipe.training.get("param_groups", ()),
        on_policy=_on_policy(recipe, arguments, distiller, items, collator, tokenizer, template, dev, folder, said),
        corpus=_corpus(recipe, template, tokenizer, limits, collator),
        data_collator=collator,
        train_dataset=train,
        eval_dataset=None if dev is None else dev.encoded,
        callbacks=[RunLog(folder)],
    )
    processes.check_wrapper(trainer.accelerator.distributed_type, arguments)
    _own_progress(trainer)
    return Prepared(trainer, train, distiller)


def _on_policy(
    recipe: Recipe,
    arguments: TrainingArguments,
    distiller: Distiller,
    items: OwnTokens | None,
    collator: Any,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    dev: DevSet | None,
    folder: Path,
    said: dict[str, Rollout] | None,
) -> OnPolicy | None:
    if items is None:
        return None
    assert recipe.rollout is not None
    return OnPolicy(
        recipe.rollout,
        distiller,
        tokenizer,
        items,
        collator,
        stop=end_of_turn(template, tokenizer),
        max_length=recipe.data.max_length,
        seed=recipe.seed,
        folder=folder,
        dev_loss=None if dev is None else dev.loss,
        said=None if said is None else by_sample(items.train, said),
        window=_window(recipe, items.train, arguments),
    )


def _window(recipe: Recipe, train: EncodedDataset, arguments: TrainingArguments) -> Window | None:
    """What the student writes at once, where that is more than a step learns from."""
    options = recipe.rollout or {}
    size, batch = options.get("window", 0), step_batch(arguments)
    return Window(size, batch, options["reuse"], recipe.seed, train.samples.tolist()) if size else None


def _answered(
    recipe: Recipe, rows: list[Row], template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> tuple[list[Row], dict[str, Rollout] | None]:
    """`rows` and, of those alone that have some, what the student answered before training, where that is asked."""
    path = (recipe.rollout or {}).get("written", "none")
    return (rows, None) if path == "none" else written_before(path, rows, template, tokenizer, limits)


def _padding(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Collator:
    return Collator(pad_id(tokenizer), pad_to=recipe.data.max_length if recipe.data.pad_to_max_length else None)


def _collator(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, two: TwoTokenizers | None, method: Method) -> Any:
    sides = [tokenizer] if two is None else [tokenizer, two.teacher]
    made = [PackingCollator() if recipe.data.packing else _padding(recipe, side) for side in sides]
    return made[0] if two is None else PairedCollator(made[0], made[1], two.pair.merge, method.edits)


def _encoded(
    source: str, rows: list[Row], template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> EncodedDataset:
    examples = [example for row in rows for example in template.examples(row)]
    encoded, census = encode_all(examples, tokenizer, limits)
    for line in census.lines():
        logger.info(f"{source}: {line}")
    return encoded


def _corpus(
    recipe: Recipe, template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits, collator: Any
) -> Corpus | None:
    path = recipe.data.corpus
    return None if path is None else Corpus(read_corpus(path, template, tokenizer, limits), collator, recipe.seed)


def _budget(recipe: Recipe, train: EncodedDataset, arguments: TrainingArguments) -> TokenBudget | None:
    """How training is cut into batches, where a batch is a number of tokens."""
    most = recipe.data.max_batch_tokens
    if most is None:
        return None
    sides = [train, train.teacher] if isinstance(train, PairedDataset) else [train]
    positions = [(side.lengths - 1).tolist() for side in sides]  # what a model is fed; see `data.collate`
    seed, processes = recipe.seed, arguments.world_size
    return TokenBudget(positions, most, packed=recipe.data.packing, seed=seed, processes=processes)


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


def _method(recipe: Recipe, two: TwoTokenizers | None) -> Method:
    settings = {key: value for key, value in recipe.method.items() if key != "name"}
    method: Method = build_method(recipe.method["name"], **settings)
    if two is not None:
        two.given_to(method)
    return method


def _check_projectors(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, two: TwoTokenizers | None) -> None:
    """Read the weights that the method shall begin with into one of its sizes, before any model is there."""
    student, teacher = recipe.student, recipe.teacher
    if recipe.method.get("projectors", "none") == "none" or teacher is None:
        return
    overrides = dict(student.config) if student.from_scratch else None
    trusted = student.trust_remote_code, teacher.trust_remote_code
    ours = head_without_weights(student.model, len(tokenizer), overrides=overrides, trust_remote_code=trusted[0])
    vocabulary = len(tokenizer if two is None else two.teacher)
    theirs = head_without_weights(teacher.model, vocabulary, trust_remote_code=trusted[1])
    _method(recipe, two).size(ours, theirs, recipe.seed)


def _distiller(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, two: TwoTokenizers | None, arguments: TrainingArguments
) -> Distiller:
    method = _method(recipe, two)
    of_student = recipe.student
    student = load_causal_lm(
        of_student.model,
        dtype=of_student.dtype,
        from_scratch=of_student.from_scratch,
        config=of_student.config,
        attn_implementation=of_student.attn_implementation,
        trust_remote_code=of_student.trust_remote_code,
        seed=recipe.seed,
        adapter="train",
        lora=of_student.lora,
        quantize=of_student.quantize,
        dropout=of_student.dropout,
    )
    if of_student.frozen:
        student.requires_grad_(False)
    student = _placed(student, arguments)
    probe(student, last_hidden)
    if recipe.data.packing:
        check_packing(student, "student")
    teacher = None
    if method.needs_teacher and recipe.teacher is not None:
        _check_writing(recipe, two)
        vocabulary = len(tokenizer if two is None else two.teacher)
        teacher = LiveTeacher(_teacher(recipe, arguments), vocabulary, recipe.teacher.window)
    if chosen := recipe.head.chosen():
        method.blocks = replace(Blocks.on(arguments.device), **chosen)  # pyright: ignore[reportArgumentType]
    if teacher is not None:
        method.size(Head.of(student, len(tokenizer)), teacher.head(), recipe.seed)
    set_seed(recipe.seed)
    translation = None if two is None or two.translation is None else two.translation.to(arguments.device)
    return Distiller(student, method, teacher, len(tokenizer), translation)


def _check_prompts(rows: Sequence[Row]) -> None:
    """A student has nothing to answer in a {text}."""
    for row in rows:
        if read(row).text:
            raise Mistake(row.origin, "a {text} row has no prompt to answer", "give {prompt} or {messages}")


def _check_writing(recipe: Recipe, two: TwoTokenizers | None) -> None:
    """A teacher that has a share in every token must say the student's tokens, and be whole."""
    assert recipe.teacher is not None
    if not (recipe.rollout or {}).get("teacher_mix", 0.0):
        return
    if two is not None:
        wrong = "draws tokens from both models, but the teacher has other tokens"
        raise Mistake("rollout.teacher_mix", wrong, "write 0")
    if recipe.teacher.shard != "none":
        raise Mistake("rollout.teacher_mix", "draws from a teacher that is whole", "write teacher.shard: none")


def _teacher(recipe: Recipe, arguments: TrainingArguments) -> PreTrainedModel:
    """The model that is learnt from, probed while it is whole."""
    assert recipe.teacher is not None
    model = load_causal_lm(
        recipe.teacher.model,
        dtype=recipe.teacher.dtype,
        attn_implementation=recipe.teacher.attn_implementation,
        trust_remote_code=recipe.teacher.trust_remote_code,
        adapter="merge",
    ).requires_grad_(False)
    if recipe.teacher.shard == "none":
        model = _placed(model, arguments)
    probe(model, last_hidden)
    if recipe.data.packing:
        check_packing(model, "teacher")
    if recipe.teacher.shard == "fsdp":
        shard(model, arguments.device, arguments.world_size)
    if recipe.teacher.shard == "zero3":
        shard_by_zero(model, arguments.device)
    return model


def _placed(model: PreTrainedModel, arguments: TrainingArguments) -> PreTrainedModel:
    """On its device, where flash attention and fast kernels are; but not whole where it will be in shards."""
    return model if processes.sharding(arguments) else model.to(arguments.device)  # pyright: ignore[reportArgumentType]


def _own_progress(trainer: DistillationTrainer) -> None:
    """Our log lines instead of the Trainer's; its bar only on a terminal."""
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Progress)


def _millions(model: Any) -> str:
    adapted = f", {adapters.trained(model) / 1e6:.2f} M of them trained" if adapters.is_adapted(model) else ""
    parameters = sum(elements(p) for p in model.parameters())
    return f"{type(adapters.bare(model)).__name__}, {parameters / 1e6:.2f} M parameters{adapted}"
