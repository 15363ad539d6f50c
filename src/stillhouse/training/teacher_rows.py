"""Training rows whose responses the teacher wrote, once, before the first step (SeqKD: Kim and Rush, 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillhouse import store
from stillhouse.data.encode import Limits
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.templates import build
from stillhouse.mistakes import Mistake
from stillhouse.recipe import Recipe
from stillhouse.rollout import Sampling, load_author
from stillhouse.rollout.write import Written, answer
from stillhouse.training import processes
from stillhouse.training.log import logger
from stillhouse.training.preflight import Tokenizers

FILE = "teacher.jsonl"


def written_by_teacher(recipe: Recipe, rows: Sequence[Row], tokenizers: Tokenizers, folder: Path) -> list[Row]:
    """`rows` with the teacher's responses: read from the run's folder, else written there by all processes together.

    Raises:
        Mistake: a row has no prompt, no response has a word in it, or the file does not verify.
    """
    path = folder / FILE
    if not processes.by_first(lambda: _is_there(path)):
        _write(recipe, rows, tokenizers, path)
    return read_rows(str(path))


def _is_there(path: Path) -> bool:
    try:
        store.verify_file(path)
    except store.Absent:
        return False
    return True


def _write(recipe: Recipe, rows: Sequence[Row], tokenizers: Tokenizers, path: Path) -> None:
    assert recipe.teacher is not None and recipe.rollout is not None
    teacher, options, data = recipe.teacher, recipe.rollout, recipe.data
    tokenizer = tokenizers.teacher or tokenizers.student
    mine = processes.share_of(list(enumerate(rows)))
    sampling = Sampling(
        options["max_new_tokens"] or data.max_length, options["temperature"], options["top_p"], options["top_k"]
    )
    answered: list[dict[str, Any] | None] = []
    written = Written(0, 0, 0, 0, 0)
    if mine:
        answered, written = answer(
            [row for _, row in mine],
            lambda: load_author(teacher.model, dtype=teacher.dtype, trust_remote_code=teacher.trust_remote_code),
            tokenizer,
            build(teacher.template or data.template, tokenizer),
            Limits(data.max_length, data.max_prompt_length, data.cut, data.bos),
            sampling,
            seed=recipe.seed,
            batch_size=options["batch_size"],
            description="the teacher answers",
            places=[place for place, _ in mine],
        )
    placed = processes.joined([(place, row) for (place, _), row in zip(mine, answered, strict=True)])
    found = [row for _, row in sorted(placed, key=lambda one: one[0]) if row is not None]
    if not found:
        wrong = f"none of its {len(rows)} responses has a word in it"
        raise Mistake(teacher.model, wrong, "is it trained on this template?")
    counts = processes.summed([float(part) for part in (written.rows, written.empty, written.unfinished)])
    said = Written(*map(int, counts), clipped=0, cut=0)
    logger.info(f"{path.name}: {'; '.join(said.lines())}")
    processes.by_first(lambda: store.write_jsonl(path, found))
