"""Answering a data set's prompts as `evaluate` does, beside the loop of the DSKD line's evaluation script.

    python benchmarks/evaluate.py --model RUN --data DOLLY/test.jsonl [--batch-size 32] [--limit 500] [--sample]
        [--json]

The loop takes the rows as they come, pads every prompt on the left to 256 tokens, and lets transformers' `generate`
write until the last row of a batch has ended, or 256 tokens. Ours takes them by length, and rows that have ended make
room for others. Both have the same prompts, limits and batch size, bar 6-grams that were there before, as that script
does (--ngram 0 does not), and answer greedily; the answers are compared token by token. With --sample both draw at
temperature 1 instead, as the papers score; then texts cannot be the same, and the mean lengths are given to judge by.

The ratio depends on how long the answers are: a model that never ends one writes 256 tokens either way, and only the
padding of its prompts is saved. Name a model that was trained on such rows; `mean_tokens` says what it writes.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import fmean, median
from typing import Any

import torch
from transformers import GenerationConfig

from stillhouse.data.encode import Limits
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.models import quiet_loading
from stillhouse.rollout import Sampling, encode_prompts, respond
from stillhouse.rollout.author import load_author

PROMPT, NEW = 256, 256  # tokens

Answers = list[list[int]]


def official_style(model: Any, prompts: Answers, end: int, options: argparse.Namespace) -> Answers:
    """The answers of the padded loop, each up to its end, the token that ends it included."""
    answers: Answers = []
    for start in range(0, len(prompts), options.batch_size):
        batch = prompts[start : start + options.batch_size]
        input_ids = torch.full((len(batch), PROMPT), end)
        mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(batch):
            input_ids[row, PROMPT - len(prompt) :] = torch.tensor(prompt)
            mask[row, PROMPT - len(prompt) :] = 1
        config = GenerationConfig(
            max_new_tokens=NEW, do_sample=options.sample, top_k=0, top_p=1.0, temperature=1.0, eos_token_id=end,
            pad_token_id=end, no_repeat_ngram_size=options.ngram,
        )  # fmt: skip
        with torch.no_grad():
            written = model.generate(input_ids, attention_mask=mask, generation_config=config)[:, PROMPT:].tolist()
        answers += [ids[: ids.index(end) + 1] if end in ids else ids for ids in written]
    return answers


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--ngram", type=int, default=6)
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quiet_loading()
    tokenizer: Any = load_tokenizer(options.model)
    model = load_author(options.model)
    rows = read_rows(options.data, split="test", limit=options.limit)
    prompts = encode_prompts(rows, build("alpaca", tokenizer), tokenizer, Limits(PROMPT + NEW, PROMPT)).input_ids
    sampling = Sampling(NEW, temperature=1.0 if options.sample else 0.0, no_repeat_ngram_size=options.ngram)
    end = int(tokenizer.eos_token_id)
    seconds: dict[str, list[float]] = {"official_style": [], "stillhouse": []}
    theirs: Answers = []
    ours: Answers = []
    for _ in range(options.repeats):
        started = time.process_time()
        theirs = official_style(model, prompts, end, options)
        seconds["official_style"].append(time.process_time() - started)
        started = time.process_time()
        said = respond(
            model, tokenizer, prompts, sampling, seed=0, batch_size=options.batch_size, max_length=PROMPT + NEW,
            description=None,
        )  # fmt: skip
        seconds["stillhouse"].append(time.process_time() - started)
        ours = [list(one.ids) for one in said]
    medians = {name: median(values) for name, values in seconds.items()}
    found: dict[str, Any] = {f"{name}_s": value for name, value in medians.items()}
    found |= {
        "ratio": medians["official_style"] / medians["stillhouse"],
        "rows": len(prompts),
        "same_answers": sum(one == other for one, other in zip(ours, theirs, strict=True)),
        "mean_tokens": fmean(map(len, ours)),
        "mean_tokens_official_style": fmean(map(len, theirs)),
        "mean_prompt": fmean(map(len, prompts)),
        "batch_size": options.batch_size,
        "ngram": options.ngram,
    }
    for name, value in found.items():
        print(f"{name:28} {value:10.2f}" if isinstance(value, float) else f"{name:28} {value:10}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
