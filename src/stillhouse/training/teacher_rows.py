"""Training rows whose responses the teacher wrote, once, before the first step (SeqKD: Kim and Rush, 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from stillhouse import store
from stillhouse.data.encode import Limits
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.templates import build
from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe
from stillhouse.rollout import Engine, Sampling, engine_of, load_author, server_of
from stillhouse.rollout.author import identify
from stillhouse.rollout.write import Written, answer, check_json
from stillhouse.training import processes
from stillhouse.training.kept import key_of
from stillhouse.training.log import logger
from stillhouse.training.preflight import Tokenizers

FILE, ORIGIN = "teacher.jsonl", "teacher.json"


def written_by_teacher(
    recipe: Recipe, rows: Sequence[Row], tokenizers: Tokenizers, folder: Path, device: torch.device
) -> list[Row]:
    """`rows` with the teacher's responses: read from the run's folder, else written there by all processes together.

    What is there is of the same teacher, rows and settings, or is written anew.

    Raises:
        Mistake: a row has no prompt or no form in JSON, no response has a word in it, or the file does not verify.
    """
    assert recipe.teacher is not None and recipe.rollout is not None
    teacher, options, data = recipe.teacher, recipe.rollout, recipe.data
    for row in rows:
        check_json(row)
    # `data.bos` is the student's.
    bos = data.bos if tokenizers.teacher is None else None
    limits = Limits(data.max_length, data.max_prompt_length, data.cut, bos)
    path, origin = folder / FILE, folder / ORIGIN

    def is_there() -> tuple[bool, str]:
        said = identify(teacher.model, trust_remote_code=teacher.trust_remote_code)
        parts = [said, teacher.template or data.template, asdict(limits), options, recipe.seed, teacher.dtype]
        named = [(row.origin, dict(row.fields)) for row in rows]
        key = key_of((tokenizers.teacher or tokenizers.student,), *parts, named)
        try:
            store.verify_file(path)
            return store.read_json(origin)["key"] == key, key
        except store.Absent:
            return False, key

    there, key = processes.by_first(is_there)
    if not there:
        answered = _written(recipe, rows, tokenizers, limits, device)

        def keep() -> None:
            store.write_jsonl(path, answered)
            store.write_json(origin, {"key": key})

        processes.by_first(keep)
    return read_rows(str(path))


def _written(
    recipe: Recipe, rows: Sequence[Row], tokenizers: Tokenizers, limits: Limits, device: torch.device
) -> list[dict[str, Any]]:
    """The rows with responses that have a word, each process having answered its share."""
    assert recipe.teacher is not None and recipe.rollout is not None
    teacher, options = recipe.teacher, recipe.rollout
    tokenizer = tokenizers.teacher or tokenizers.student
    mine = processes.share_of(list(enumerate(rows)))
    longest = options["max_new_tokens"] or limits.max_length
    answered: list[dict[str, Any] | None] = []
    written = Written(0, 0, 0, 0, 0)
    if mine:
        answered, written = answer(
            [row for _, row in mine],
            lambda: _author(recipe, device),
            tokenizer,
            build(teacher.template or recipe.data.template, tokenizer),
            limits,
            Sampling(longest, options["temperature"], options["top_p"], options["top_k"]),
            seed=recipe.seed,
            description="the teacher answers",
            places=[place for place, _ in mine],
        )
    placed = processes.joined([(place, row) for (place, _), row in zip(mine, answered, strict=True)])
    found = [row for _, row in sorted(placed, key=lambda one: one[0]) if row is not None]
    counts = processes.summed([float(getattr(written, field.name)) for field in fields(Written)])
    logger.info(f"{FILE}: {'; '.join(Written(*map(int, counts)).lines())}")
    if not found:
        wrong = f"none of its {len(rows)} responses has a word in it"
        raise Mistake(teacher.model, wrong, "is it trained on this template?")
    return found


def _author(recipe: Recipe, device: torch.device) -> Engine:
    """What writes as the teacher."""
    assert recipe.teacher is not None and recipe.rollout is not None
    teacher, options = recipe.teacher, recipe.rollout
    if options["server"] != "none":
        trusted = teacher.trust_remote_code
        return server_of(options["server"], teacher.model, options["batch_size"], trust_remote_code=trusted)
    model = load_author(
        teacher.model,
        dtype=teacher.dtype,
        attn_implementation=teacher.attn_implementation,
        trust_remote_code=teacher.trust_remote_code,
        device=device,
    )
    return engine_of(model, options["engine"], options["batch_size"])
