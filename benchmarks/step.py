"""One ToDi training step on Dolly: ours against the same step with full logits, padded to 512.

    python benchmarks/step.py --data DOLLY/train.jsonl --tokenizer GPT2_FOLDER [--json]

Both do forward of teacher and student, CE + ToDi, backward and AdamW on the same rows and the same weights, in turns
in one process; medians are compared. The naive step is that of the DSKD/ToDi line: every row padded to `max_length`,
all logits of both models, several full-size probability tensors, autograd. The losses must agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from stillhouse.data.collate import Collator
from stillhouse.data.encode import Limits, encode_all
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import load_tokenizer, pad_id
from stillhouse.methods import build as build_method
from stillhouse.teacher import LiveTeacher
from stillhouse.training.distiller import Distiller

TEMPERATURE, KD_WEIGHT = 2.0, 0.5
Batch = dict[str, Tensor]


def gpt2(layers: int, width: int, heads: int, vocabulary: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_layer=layers, n_embd=width, n_head=heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return GPT2LMHeadModel(config)


def naive_loss(student: GPT2LMHeadModel, teacher: GPT2LMHeadModel, batch: Batch) -> Tensor:
    """Token mean of CE + ToDi as the official loop takes it: on all logits of all positions."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logits = student(**inputs).logits  # [B, L, V]
    with torch.no_grad():
        teacher_logits = teacher(**inputs).logits  # [B, L, V]
    labels, scored = batch["labels"].clamp_min(0), batch["labels"] != -100  # [B, L]
    nll = -logits.log_softmax(-1, torch.float32).gather(-1, labels[..., None])[..., 0]
    log_q = (logits / TEMPERATURE).log_softmax(-1, torch.float32)
    log_p = (teacher_logits / TEMPERATURE).log_softmax(-1, torch.float32)
    q, p = log_q.exp(), log_p.exp()
    weight = torch.sigmoid(log_p - log_q).detach()
    todi = (weight * p * (log_p - log_q) + (1 - weight) * q * (log_q - log_p)).sum(-1)  # [B, L]
    return (((1 - KD_WEIGHT) * nll + KD_WEIGHT * todi) * scored).sum() / scored.sum()


def our_loss(distiller: Distiller, batch: Batch) -> Tensor:
    loss, _ = distiller(batch["input_ids"], batch["attention_mask"], batch["labels"], batch["scored_at"])
    return loss / batch["scored_at"].shape[0]


def timed_step(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> tuple[float, float]:
    """Seconds and loss of one optimizer step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - start, loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/dolly/train.jsonl")
    parser.add_argument("--tokenizer", default="../shared/tokenizers/gpt2-base")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6, help="each on other rows; the first of each side is a warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    tokenizer = load_tokenizer(options.tokenizer)
    template = build_template("alpaca", tokenizer)
    rows = read_rows(options.data, limit=options.batch_size * options.steps)
    encoded, _ = encode_all(
        [example for row in rows for example in template.examples(row)], tokenizer, Limits(options.max_length, 256)
    )
    padded, tight = Collator(pad_id(tokenizer), pad_to=options.max_length), Collator(pad_id(tokenizer))
    teacher = gpt2(12, 768, 12, len(tokenizer), seed=1).eval()
    students = [gpt2(4, 256, 4, len(tokenizer), seed=2) for _ in range(2)]
    method = build_method("todi", temperature=TEMPERATURE, kd_weight=KD_WEIGHT)
    distiller = Distiller(students[1], method, LiveTeacher(teacher, len(tokenizer)), len(tokenizer))
    optimizers = [torch.optim.AdamW(student.parameters(), lr=5e-4) for student in students]

    seconds: dict[str, list[float]] = {"naive": [], "stillhouse": []}
    worst = 0.0
    for step in range(options.steps):
        items = [encoded[step * options.batch_size + i] for i in range(options.batch_size)]
        wide, narrow = padded(items), tight(items)
        naive_s, naive = timed_step(optimizers[0], lambda: naive_loss(students[0], teacher, wide))  # noqa: B023
        ours_s, ours = timed_step(optimizers[1], lambda: our_loss(distiller, narrow))  # noqa: B023
        worst = max(worst, abs(naive - ours) / abs(naive))
        if step:
            seconds["naive"].append(naive_s)
            seconds["stillhouse"].append(ours_s)
        print(f"step {step}: naive {naive_s:7.2f} s  stillhouse {ours_s:6.2f} s  loss {naive:.6f} / {ours:.6f}")
    result = {
        "naive_pad512_s": round(statistics.median(seconds["naive"]), 3),
        "stillhouse_s": round(statistics.median(seconds["stillhouse"]), 3),
        "ratio": round(statistics.median(n / o for n, o in zip(*seconds.values(), strict=True)), 2),
        "loss_rel_diff": worst,
    }
    print(f"median: naive {result['naive_pad512_s']} s, stillhouse {result['stillhouse_s']} s, {result['ratio']} times")
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
