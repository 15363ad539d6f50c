"""Rows whose responses a model wrote: what sequence-level distillation trains on (Kim and Rush, 2016)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse import store
from stillhouse.data import Row, read_rows
from stillhouse.data.conversation import RESPONSE_KEYS
from stillhouse.data.encode import Limits
from stillhouse.data.templates import Template, build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.mistakes import Mistake
from stillhouse.model_folders import remark
from stillhouse.rollout.author import engine_of, identify, load_author, server_of
from stillhouse.rollout.engine import Engine
from stillhouse.rollout.generate import Response, respond
from stillhouse.rollout.prompts import encode_prompts, end_of_turn
from stillhouse.rollout.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stillhouse.recipe import EvaluateOptions, GenerateOptions


@dataclass(frozen=True)
class Written:
    """What became of the prompts of a file.

    Attributes:
        rows: prompts that were answered.
        empty: responses without a word, which were left out.
        unfinished: responses broken off at their longest, which were kept.
        clipped: responses that had fewer than `max_new_tokens` to go, since the model or `max_length` has no more room.
        cut: prompts that lost tokens to `max_prompt_length`.
    """

    rows: int
    empty: int
    unfinished: int
    clipped: int
    cut: int

    def lines(self) -> Iterator[str]:
        """One sentence on each count that is not 0."""
        yield f"{self.rows - self.empty} of {self.rows} rows answered"
        if self.empty:
            yield f"{self.empty} empty responses left out"
        if self.unfinished:
            yield f"{self.unfinished} responses kept that were broken off at their longest (max_new_tokens)"
        if self.clipped:
            yield f"{self.clipped} responses with less room than max_new_tokens (max_length, or the model's positions)"
        if self.cut:
            yield f"{self.cut} prompts cut to max_prompt_length"


def write_responses(options: GenerateOptions) -> Written:
    """Answer every row of `options.data` and write it, its response replaced, to `options.out` (JSON Lines).

    Raises:
        Mistake: the file is there already, a row has no prompt or no form in JSON, or no response has a word in it.
    """
    out = Path(options.out)
    _check_out(out, overwrite=options.overwrite)
    sampling = Sampling(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
    )
    limits = Limits(options.max_length, options.max_prompt_length, bos=options.bos)
    rows = read_rows(options.data, limit=options.limit)
    for row in rows:
        check_json(row)
    if said := remark(options.model):
        print(said, file=sys.stderr)
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    identify(options.model, trust_remote_code=options.trust_remote_code)  # refuses a folder that does not verify
    found, written = answer(
        rows,
        lambda: chosen(options),
        tokenizer,
        build(options.template, tokenizer),
        limits,
        sampling,
        seed=options.seed,
        description=f"answering {Path(options.data).name}",
    )
    answered = [row for row in found if row is not None]
    if not answered:
        raise Mistake(
            options.model, f"none of its {len(rows)} responses has a word in it", "is it trained on this template?"
        )
    store.write_jsonl(out, answered)
    print(f"{out}: {'; '.join(written.lines())}")
    return written


def chosen(options: GenerateOptions | EvaluateOptions) -> Engine:
    """What writes, as `options` say: the server that they name, or their model in this process.

    Raises:
        Mistake: the model does not load, or the server does not have it.
    """
    trusted = options.trust_remote_code
    if options.server is not None:
        return server_of(options.server, options.model, options.batch_size, trust_remote_code=trusted)
    model = load_author(options.model, dtype=options.dtype, trust_remote_code=trusted)
    return engine_of(model, options.engine, options.batch_size)


def answer(
    rows: Sequence[Row],
    load: Callable[[], Engine],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    limits: Limits,
    sampling: Sampling,
    *,
    seed: int,
    description: str,
    places: Sequence[int] | None = None,
) -> tuple[list[dict[str, Any] | None], Written]:
    """Every row with its response replaced by the model's, None for a response without a word; and the count of all.

    Args:
        rows: with prompts.
        load: gives what writes, once every prompt is known to be one.
        places: of the rows among all that one seed is for; by default they are all.

    Raises:
        Mistake: a row has no prompt.
    """
    prompts = encode_prompts(rows, template, tokenizer, limits)
    responses = respond(
        load(),
        tokenizer,
        prompts.input_ids,
        sampling,
        seed=[(seed, place) for place in (places if places is not None else range(len(rows)))],
        description=description,
        max_length=limits.max_length,
        stop=end_of_turn(template, tokenizer),
    )
    answered = [
        answered_row(row, said.text) if said.text.strip() else None for row, said in zip(rows, responses, strict=True)
    ]
    return answered, count(responses, prompts.cut)


def count(responses: list[Response], cut: int) -> Written:
    """What is worth saying of `responses`."""
    return Written(
        rows=len(responses),
        empty=sum(not response.text.strip() for response in responses),
        unfinished=sum(not response.finished for response in responses),
        clipped=sum(response.clipped for response in responses),
        cut=cut,
    )


def answered_row(row: Row, response: str) -> dict[str, Any]:
    """The fields of `row`, its response replaced or, where it had none, added in its format's own place."""
    fields = dict(row.fields)
    if fields.get("messages") is not None:
        messages = list(fields["messages"])
        history = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        return {**fields, "messages": [*history, {"role": "assistant", "content": response}]}
    there = next((key for key in RESPONSE_KEYS if fields.get(key) is not None), None)
    return {**fields, there or ("output" if fields.get("instruction") is not None else "completion"): response}


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.suffix != ".jsonl":
        raise Mistake(f"out: {out}", "is not named .jsonl", f"write --out={out.with_suffix('.jsonl')}")
    if out.is_dir():
        raise Mistake(f"out: {out}", "is a folder", "give a file that ends in .jsonl")
    if out.exists() and not overwrite:
        raise Mistake(f"out: {out}", "exists already", "give another --out, or --overwrite=true to replace it")


def check_json(row: Row) -> None:
    """Now, rather than when hours of writing are done."""
    try:
        json.dumps(dict(row.fields), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Mistake(row.origin, f"cannot be written as JSON: {error}", "remove that field") from error
