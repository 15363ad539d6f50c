"""Pairs that are ready before training: a file's responses stand for what the student would write at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from stillhouse.catalogue.sources import REJECTED
from stillhouse.data.conversation import rejected
from stillhouse.data.encode import EncodedDataset, Limits, encode_all
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.templates import Template
from stillhouse.mistakes import Mistake
from stillhouse.rollout import end_of_turn
from stillhouse.rollout.replay import Rollout
from stillhouse.training.log import logger
from stillhouse.training.rewriting import OwnTokens


def written_before(
    path: str, rows: Sequence[Row], template: Template, tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> tuple[list[Row], dict[str, Rollout]]:
    """The rows whose prompts were answered, and by their origins those answers, of no sample yet.

    Prompts belong together where the template writes them alike: `stillhouse generate` leaves out what has no word.

    Args:
        path: rows like the training set's, their responses the student's own; or "rejected": what each row of the
            training set says itself.

    Raises:
        Mistake: a row there has no response, or none answers a prompt of the training set.
    """
    if path == REJECTED:
        answers = {row.origin: template.examples(rejected(row))[-1] for row in rows}
        asked = {row.origin: row.origin for row in rows}
    else:
        answers = {template.prompt(row).text: template.examples(row)[-1] for row in reversed(read_rows(path))}
        asked = {row.origin: template.prompt(row).text for row in rows}
    prompts = [prompt for prompt in dict.fromkeys(asked.values()) if prompt in answers]
    found: dict[str, Rollout] = {}
    if prompts:
        encoded, census = encode_all([answers[prompt] for prompt in prompts], tokenizer, limits)
        for line in census.lines():
            logger.info(f"{path}: {line}")
        items, end_of_text = OwnTokens(encoded), tokenizer.eos_token_id
        ends = [end_of_text, *end_of_turn(template, tokenizer)]
        found = {prompts[sample]: _rollout(items, sample, ends) for sample in encoded.samples.tolist()}
    kept = [row for row in rows if asked[row.origin] in found]
    if not kept:
        mend = "write it with stillhouse generate"
        raise Mistake("rollout.written", f"answers no prompt of the training rows: '{path}'", mend)
    if len(kept) < len(rows):
        logger.info(f"{path}: answers {len(kept)} of {len(rows)} training rows; the others are left out")
    return kept, {row.origin: found[asked[row.origin]] for row in kept}


def _rollout(items: OwnTokens, sample: int, ends: Sequence[Any]) -> Rollout:
    prompt = items.prompt(sample)
    response = items.given(sample)["input_ids"][len(prompt) :].tolist()
    nothing = (0.0,) * len(response)
    return Rollout(-1, tuple(prompt), tuple(response), response[-1] in ends, nothing, (1.0,) * len(response), nothing)


def by_sample(train: EncodedDataset, found: Mapping[str, Rollout]) -> dict[int, Rollout]:
    """The answers of `written_before` by the samples of the training set.

    Raises:
        Mistake: the template makes several examples of a row, and there is one answer to it.
    """
    placed: dict[str, Rollout] = {}
    for sample, origin in zip(train.samples.tolist(), train.origins, strict=True):
        if origin in placed:
            wrong = "becomes an example a turn in this template, and rollout.written answers the last"
            raise Mistake(origin, wrong, "give each turn a row of its own")
        placed[origin] = replace(found[origin], sample=sample)
    return {one.sample: one for one in placed.values()}
