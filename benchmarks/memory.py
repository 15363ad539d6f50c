"""The memory of a training step: peak resident size of a fresh process for each layout and treatment of activations.

    python benchmarks/memory.py [--json]

One ToDi step (AdamW included) of a GPT-2 of 4 layers x 512 on 8 Dolly examples, with a teacher of the same shape. The
baseline is the peak of steps on a single short example, so that the rest is what the batch adds. `padded_to_512_whole`
is what an accelerator computes: a CPU runs padded rows in groups of like length (`models.last_hidden`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from stillhouse import models
from stillhouse.data.collate import Collator, PackingCollator
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.methods import build as build_method
from stillhouse.teacher import LiveTeacher
from stillhouse.training.distiller import Distiller

MODES = (
    "one_example", "padded_to_512_whole", "padded_to_512", "padded_to_longest",
    "packed", "packed_checkpointed", "packed_bf16",
)  # fmt: skip
INPUTS = ("input_ids", "attention_mask", "labels", "scored_at", "packed")


def measure(mode: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak MiB of this process, seconds of its second step, and positions of its batch."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(options.tokenizer)
    template = build_template("alpaca", tokenizer)
    rows = read_rows(options.data, limit=options.batch_size)
    data, _ = encode_all([example for row in rows for example in template.examples(row)], tokenizer, Limits(512, 256))
    items = sorted((data[index] for index in range(len(data))), key=lambda item: len(item["input_ids"]))
    pad_to = 512 if mode.startswith("padded_to_512") else None
    collate = PackingCollator() if mode.startswith("packed") else Collator(0, pad_to)
    if mode == "padded_to_512_whole":
        models.like_lengths = lambda lengths, cost=0: [list(range(len(lengths)))]  # as on an accelerator
    batch = collate(items[:1] if mode == "one_example" else items)
    torch.manual_seed(0)
    vocabulary = len(tokenizer)
    sizes: dict[str, Any] = {"n_layer": options.layers, "n_embd": options.width, "n_head": options.width // 64}
    config = GPT2Config(vocab_size=vocabulary, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes)
    student = GPT2LMHeadModel(config).train()
    if mode == "packed_checkpointed":
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    teacher = LiveTeacher(GPT2LMHeadModel(config), vocabulary)
    distiller = Distiller(student, build_method("todi"), teacher, vocabulary)
    optimizer = torch.optim.AdamW(student.parameters())
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "packed_bf16"):
            loss, _ = distiller(**{name: batch.get(name) for name in INPUTS})
        (loss / len(batch["scored_at"])).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": round(peak), "seconds": round(seconds, 2), "positions": batch["input_ids"].numel()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/dolly/train.jsonl")
    parser.add_argument("--tokenizer", default="../shared/tokenizers/gpt2-base")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--mode", choices=MODES, help="measure this one in this process")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode, options)))
        return
    found: dict[str, dict[str, float]] = {}
    for mode in MODES:
        command = [sys.executable, __file__, *sys.argv[1:], f"--mode={mode}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[mode] = json.loads(done.stdout.splitlines()[-1])
        more = found[mode]["peak_mib"] - found["one_example"]["peak_mib"]
        print("{:20} {positions:6} positions {peak_mib:6} MiB".format(mode, **found[mode]), f"(+{more})",
              f"{found[mode]['seconds']:6.2f} s")  # fmt: skip
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
