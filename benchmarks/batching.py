"""How much of a batch is real tokens, and what a training step takes, however the batch is laid out.

    python benchmarks/batching.py --data DOLLY/train.jsonl --tokenizer GPT2_FOLDER [--teacher-tokenizer QWEN_FOLDER]
        [--budget 4096] [--window 8] [--json]

Every layout is counted on the batches that training would see, from the collators themselves: the student's tokens and
the teacher's tokens of the same examples in the same batches. The times are of ToDi steps of small GPT-2s on this
machine (teacher and student on the student's tokens), in turns. Their vocabulary is small, so that what is timed is
the backbones: the head's work is on the scored tokens alone and the same in every layout.

With --budget, batches of so many tokens are counted instead; with --window, steps are timed whose teacher is asked for
every micro-batch or for so many at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from stillhouse.data.collate import Collator, PackingCollator
from stillhouse.data.encode import EncodedDataset, Limits, encode_all
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.methods import build as build_method
from stillhouse.teacher import LiveTeacher
from stillhouse.training.budget import TokenBudget
from stillhouse.training.distiller import Distiller
from stillhouse.training.sampling import LengthGrouped

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
Batches = list[list[int]]
INPUTS = ("input_ids", "attention_mask", "labels", "scored_at", "packed")


def encoded(options: argparse.Namespace, folder: str) -> EncodedDataset:
    tokenizer = load_tokenizer(folder)
    template = build_template("alpaca", tokenizer)
    rows = read_rows(options.data, limit=options.rows)
    examples = [example for row in rows for example in template.examples(row)]
    return encode_all(examples, tokenizer, Limits(options.max_length, options.max_length // 2))[0]


def efficiency(dataset: EncodedDataset, batches: Batches, collate: Collate) -> float:
    """Real tokens a position, over all batches; `batches` holds numbers of samples."""
    where = {int(sample): index for index, sample in enumerate(dataset.samples)}
    real = positions = 0
    for batch in batches:
        items = [dataset[where[sample]] for sample in batch]
        real += sum(len(item["input_ids"]) - 1 for item in items)
        positions += collate(items)["input_ids"].numel()
    return real / positions


def filled(
    student: EncodedDataset, teacher: EncodedDataset, both: set[int], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Batches by a budget: real tokens of the student and of the teacher, a position of padded ones, a token of it."""
    sides = [
        [int(side.lengths[index]) - 1 for index, sample in enumerate(side.samples) if int(sample) in both]
        for side in (student, teacher)
    ]
    shares: dict[str, list[float]] = {}
    for name, streams in (("student's", sides[:1]), ("both", sides)):
        packed = TokenBudget(streams, options.budget, packed=True, seed=options.seed).batches
        padded = TokenBudget(streams, options.budget, packed=False, seed=options.seed).batches
        shares[f"packed within {name}"] = [sum(side) / (options.budget * len(packed)) for side in sides]
        shares[f"padded within {name}"] = [
            sum(side) / sum(len(batch) * max(side[example] for example in batch) for batch in padded) for side in sides
        ]
    return shares


def orders(student: EncodedDataset, both: set[int], options: argparse.Namespace) -> tuple[Batches, Batches]:
    """Batches in random order and length-grouped by the student's tokens, of the samples that `both` sides kept."""
    kept = [index for index, sample in enumerate(student.samples) if int(sample) in both]
    lengths = [int(student.lengths[index]) for index in kept]
    shuffled = np.random.default_rng(options.seed).permutation(len(kept)).tolist()
    grouped = list(LengthGrouped(lengths, options.batch_size, options.seed))
    size = options.batch_size

    def cut(order: list[int]) -> Batches:
        samples = [int(student.samples[kept[index]]) for index in order]
        return [samples[start : start + size] for start in range(0, len(samples), size)]

    return cut(shuffled), cut(grouped)


def gpt2(layers: int, width: int, vocabulary: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"n_layer": layers, "n_embd": width, "n_head": max(1, width // 64)}
    zeros: dict[str, Any] = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes, **zeros))


def step_seconds(distiller: Distiller, batch: dict[str, Any]) -> float:
    batch["input_ids"] %= distiller.vocabulary
    batch["labels"][batch["scored"]] %= distiller.vocabulary
    start = time.perf_counter()
    distiller.zero_grad()
    loss, _ = distiller(**{name: batch.get(name) for name in INPUTS})
    (loss / len(batch["scored_at"])).backward()
    return time.perf_counter() - start


def times(
    dataset: EncodedDataset, layouts: dict[str, tuple[Batches, Collate]], options: argparse.Namespace
) -> dict[str, float]:
    """Microseconds a real token of each layout: the median over steps, the first of each left out."""
    vocabulary = options.vocabulary
    where = {int(sample): index for index, sample in enumerate(dataset.samples)}
    student = gpt2(options.layers, options.width, vocabulary, 1)
    teacher = LiveTeacher(gpt2(2 * options.layers, options.width, vocabulary, 2), vocabulary)
    distiller = Distiller(student, build_method("todi"), teacher, vocabulary)
    taken: dict[str, list[float]] = {name: [] for name in layouts}
    for step in range(options.steps + 1):
        for name, (batches, collate) in layouts.items():
            # Evenly over the epoch: length-grouped batches come longest first.
            batch = [dataset[where[sample]] for sample in batches[step * (len(batches) - 1) // (options.steps + 1)]]
            seconds = step_seconds(distiller, collate(batch))
            if step:
                taken[name].append(1e6 * seconds / sum(len(item["input_ids"]) - 1 for item in batch))
    return {name: round(statistics.median(all_), 1) for name, all_ in taken.items()}


def window_times(dataset: EncodedDataset, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a step of accumulated micro-batches, the teacher asked for each, and for all at once."""
    vocabulary, size, window = options.vocabulary, options.micro, options.window
    student = gpt2(options.layers, options.width, vocabulary, 1)
    teacher = LiveTeacher(gpt2(2 * options.layers, options.width, vocabulary, 2), vocabulary, window)
    distiller = Distiller(student, build_method("todi"), teacher, vocabulary)
    taken: dict[str, list[float]] = {}
    for step in range(options.steps + 1):
        items = [dataset[(step * size * window + i) % len(dataset)] for i in range(size * window)]
        for name, collate in (("padded", Collator(0)), ("packed", PackingCollator())):
            batches = [collate(items[start : start + size]) for start in range(0, len(items), size)]
            for batch in batches:
                batch["input_ids"] %= vocabulary
                batch["labels"][batch["scored"]] %= vocabulary
            for ahead in (False, True) if step % 2 else (True, False):
                start = time.perf_counter()
                distiller.zero_grad()
                predicted = teacher.predict_all(batches) if ahead else [None] * window
                for batch, said in zip(batches, predicted, strict=True):
                    loss, _ = distiller(**{name: batch.get(name) for name in INPUTS}, predicted=said)
                    (loss / len(batch["scored_at"])).backward()
                if step:
                    key = f"{name}, {'at once' if ahead else 'each'}"
                    taken.setdefault(key, []).append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(all_) for name, all_ in taken.items()}
    for name in ("padded", "packed"):
        pairs = zip(taken[f"{name}, each"], taken[f"{name}, at once"], strict=True)
        medians[f"{name}, gain"] = statistics.median(each / at_once for each, at_once in pairs)
    return {name: round(value, 3) for name, value in medians.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/dolly/train.jsonl")
    parser.add_argument("--tokenizer", default="../shared/tokenizers/gpt2-base")
    parser.add_argument("--teacher-tokenizer", help="by default the student's")
    parser.add_argument("--rows", type=int, help="the first so many; by default all")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2, help="of the timed student; the teacher has twice as many")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=2000, help="of the timed models; ids are taken modulo it")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each layout; 0: none")
    parser.add_argument("--window", type=int, default=0, help="micro-batches that a teacher is asked at once; 0: none")
    parser.add_argument("--micro", type=int, default=2, help="examples of one of them")
    parser.add_argument("--budget", type=int, default=0, help="count batches of so many tokens instead; 0: do not")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    student = encoded(options, options.tokenizer)
    if options.window:
        of_window = window_times(student, options)
        print(json.dumps(of_window, indent=None if options.json else 1))
        return
    teacher = encoded(options, options.teacher_tokenizer or options.tokenizer)
    both = set(map(int, student.samples)) & set(map(int, teacher.samples))
    if options.budget:
        for name, (of_student, of_teacher) in filled(student, teacher, both, options).items():
            print(f"{name:24} student {of_student:7.1%}  teacher {of_teacher:7.1%} of {options.budget}")
        return
    random, grouped = orders(student, both, options)
    layouts: dict[str, tuple[Batches, Collate]] = {
        f"padded_to_{options.max_length}": (random, Collator(0, pad_to=options.max_length)),
        "padded_to_longest": (random, Collator(0)),
        "length_grouped": (grouped, Collator(0)),
        "padding_free": (random, PackingCollator()),
    }
    shares = {name: [efficiency(side, *layout) for side in (student, teacher)] for name, layout in layouts.items()}
    micros = times(student, layouts, options) if options.steps else {}
    print(f"{len(random)} batches of {options.batch_size} examples; real tokens a position, and µs a real token")
    for name, (of_student, of_teacher) in shares.items():
        print(f"{name:20} student {of_student:7.1%}  teacher {of_teacher:7.1%}  step {micros.get(name, '-'):>7}")
    if options.json:
        packed = dict(zip(("student_efficiency", "teacher_efficiency"), shares["padding_free"], strict=True))
        layouts_ = {name: {"student": pair[0], "teacher": pair[1]} for name, pair in shares.items()}
        print(json.dumps(packed | {"layouts": layouts_, "microseconds_a_token": micros}))


if __name__ == "__main__":
    main()
