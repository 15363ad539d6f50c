"""Training steps with a teacher of another tokenizer: over the forward-KL step with one tokenizer; and alignments.

    python benchmarks/cross_tokenizer.py [--teacher TOKENIZER --student TOKENIZER --data DOLLY/train.jsonl] [--json]

Every step is the whole one: forward of student and teacher, loss, backward, AdamW; the same rows, the same student, in
turns in one process, process CPU time, medians. `forward_kl` beside which all stand has a teacher of the same size that
has the student's tokenizer, so that only the second tokenizer makes a difference, and with it the teacher's vocabulary
(`--teacher mistral --student tinyllama`, the default, have 32,000 tokens each).

Fresh projectors are right about no token, so `dskd_cma` leaves out most of its divergence in the student's space;
`dskd_cma, every token right` takes all of it, which is the most that it can cost.

Alignment: byte spans (grouping alone, and with finding them), edit distances with dynamic time warping, and the same in
plain Python as MinED's and MCW-KD's loops do it at every step, on texts of about 512 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from stillhouse.alignment import DTW, EditDistances, Side, span, texts
from stillhouse.data.encode import Limits, encode
from stillhouse.data.pieces import Pieces
from stillhouse.data.rows import read_rows
from stillhouse.data.templates import build as build_template
from stillhouse.data.tokenizer import load_tokenizer
from stillhouse.divergence import uld
from stillhouse.methods import dual_space
from stillhouse.models import quiet_loading
from stillhouse.recipe import parse
from stillhouse.training.arguments import training_arguments
from stillhouse.training.distiller import Distiller
from stillhouse.training.preflight import tokenizers_of
from stillhouse.training.prepare import prepare

BASE = "forward_kl, one tokenizer"
SORTLESS = "uld, sort left out"
ALL_RIGHT = "dskd_cma, every token right"
# Name -> the method's options, and what `over_fkl` is to stay below.
STEPS: dict[str, tuple[list[str], float]] = {
    BASE: (["--method=forward_kl"], 1.0),
    "forward_kl, span, overlap": (["--method=forward_kl", "--alignment=span", "--vocabulary=overlap"], 1.3),
    "forward_kl, span, exact": (["--method=forward_kl", "--alignment=span", "--vocabulary=exact"], 1.3),
    "forward_kl, span, min_edit": (["--method=forward_kl", "--alignment=span", "--vocabulary=min_edit"], 1.3),
    "forward_kl, span, prefix": (["--method=forward_kl", "--alignment=span", "--vocabulary=prefix"], 1.3),
    "todi, span, overlap": (["--method=todi", "--alignment=span", "--vocabulary=overlap"], 1.3),
    "overlap": (["--method=overlap"], 1.3),
    "mined": (["--method=mined"], 1.3),
    "cdm": (["--method=cdm"], 1.6),
    "uld": (["--method=uld"], float("inf")),
    SORTLESS: (["--method=uld"], 2.0),
    "multi_level_ot": (["--method=multi_level_ot"], float("inf")),
    "gold": (["--method=gold"], float("inf")),
    "alm": (["--method=alm"], float("inf")),
    "dskd": (["--method=dskd", "--alignment=span"], float("inf")),
    "dskd_v2": (["--method=dskd_v2"], float("inf")),
    "dskd_cma": (["--method=dskd_cma"], 2.0),
    ALL_RIGHT: (["--method=dskd_cma"], 2.0),
    "mcw_kd": (["--method=mcw_kd"], float("inf")),
    "mcw_kd_dual": (["--method=mcw_kd_dual"], float("inf")),
}
SORTS, IN_BOTH_SPACES = (uld._ranked, uld._highest), dual_space.dual_space
NAMES = ("input_ids", "attention_mask", "labels", "scored_at", "packed", "teacher", "pairing")


class Step:
    """One method's step, ready to be taken."""

    def __init__(self, options: list[str], world: Path, teacher: str, args: argparse.Namespace) -> None:
        keys = {
            "student.model": world / "student", "teacher.model": world / teacher, "data.train": args.data,
            "data.limit": args.batch_size, "data.max_length": args.max_length, "output": world / "out",
            "data.max_prompt_length": args.max_length // 2, "training.max_steps": 1, "training.use_cpu": True,
            "teacher.dtype": args.dtype, "training.bf16": str(args.dtype == "bfloat16").lower(),
        }  # fmt: skip
        recipe = parse("distill", [*(f"--{key}={value}" for key, value in keys.items()), *options])
        prepared = prepare(recipe, world, tokenizers_of(recipe)[0], training_arguments(recipe))
        self.distiller: Distiller = prepared.distiller.train()
        collate: Any = prepared.trainer.data_collator
        batch = collate([prepared.train[index] for index in range(len(prepared.train))])
        self.inputs = {name: batch.get(name) for name in NAMES}
        self.tokens = len(batch["scored_at"])
        self.optimizer = torch.optim.AdamW(self.distiller.parameters(), lr=1e-5)
        self.bf16 = args.dtype == "bfloat16"

    def __call__(self) -> float:
        """Seconds of process CPU time."""
        start = time.process_time()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss, _ = self.distiller(**self.inputs)
        (loss / self.tokens).backward()
        self.optimizer.step()
        return time.process_time() - start


def write_models(world: Path, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """A student, a teacher of its tokenizer and one of another, of equal size, with random weights."""
    sizes = {"student": (512, 4, student), "same": (1024, 8, student), "other": (1024, 8, teacher)}
    for seed, (name, (width, layers, tokenizer)) in enumerate(sizes.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=2048,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(world / name)
        tokenizer.save_pretrained(world / name)


def ranked_by_nothing(q: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `uld` ranks the student's probabilities by, without its sort."""
    return q[:, :count], torch.arange(count).expand(len(q), count)


def highest_by_nothing(p: torch.Tensor, count: int) -> torch.Tensor:
    """The same of the teacher's."""
    return p[:, :count]


def in_both_spaces(*args: Any, **options: Any) -> Any:
    """DSKD's losses of every row, whatever their `only_right`."""
    return IN_BOTH_SPACES(*args, **{**options, "only_right": False})


def put_in_place(name: str) -> None:
    """What `name` leaves out or takes whole; elsewhere the library's own."""
    uld._ranked, uld._highest = (ranked_by_nothing, highest_by_nothing) if name == SORTLESS else SORTS
    dual_space.dual_space = in_both_spaces if name == ALL_RIGHT else IN_BOTH_SPACES


def steps(world: Path, args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of every step, taken in turns."""
    chosen = {name: what for name, what in STEPS.items() if not args.only or name in (BASE, *args.only)}
    ready = {
        name: Step(options, world, "same" if name == BASE else "other", args) for name, (options, _) in chosen.items()
    }
    print(f"{ready[BASE].tokens} scored tokens a step")
    taken: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(args.repeats + 1):
        for name, step in list(ready.items())[:: -1 if turn % 2 else 1]:  # so that none is always after the same
            put_in_place(name)
            seconds = step()
            if turn:  # the first one compiles and warms up
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def python_dtw(ours: list[str], theirs: list[str]) -> int:
    """Edit distances cell by cell and the recurrence in Python."""
    far = float("inf")
    above = [0.0, *[far] * len(ours)]
    for row in theirs:
        here = [far]
        for at, column in enumerate(ours):
            here.append(Levenshtein.distance(row, column) + min(above[at], above[at + 1], here[at]))
        above = [far, *here[1:]]
    return int(above[-1])


def best_ms(work: Callable[[], Any], least: float = 0.2) -> float:
    """Milliseconds of a call, the best of many."""
    best, end = float("inf"), time.perf_counter() + least
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def alignment_ms(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, data: str, size: int
) -> dict[str, float]:
    """Milliseconds of aligning one text of about `size` tokens."""
    template = build_template("alpaca", student)
    limits = Limits(1 << 20, 1 << 19)
    examples = [example for row in read_rows(data, limit=2_000) for example in template.examples(row)]
    sized = [
        (abs(len(encode(one, student, limits).scored.nonzero()[0]) - size), index) for index, one in enumerate(examples)
    ]
    example = examples[min(sized)[1]]
    sides = []
    for tokenizer in (student, teacher):
        encoding = encode(example, tokenizer, limits, "bytes")
        sides.append(Side.of({"input_ids": encoding.input_ids, "scored": encoding.scored, "ends": encoding.ends}))
    bare = [texts(Pieces.of(tokenizer), "bare") for tokenizer in (student, teacher)]
    warped = DTW(EditDistances(bare[0], bare[1]))
    words = [[names[index] for index in side.inputs] for names, side in zip(bare, sides, strict=True)]
    for align in (span, warped):  # compiled
        align(*sides)
    return {
        "tokens": float(np.mean([len(side) for side in sides])),
        "byte_spans": best_ms(lambda: span(*sides)),
        "dtw": best_ms(lambda: warped(*sides)),
        "python_dtw": best_ms(lambda: python_dtw(words[0], words[1]), 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="../shared/tokenizers/tinyllama-1.1b-3T")
    parser.add_argument("--teacher", default="../shared/tokenizers/mistral-7b-v0.1")
    parser.add_argument("--data", default="../shared/data/dolly/train.jsonl")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="names of steps; the base is always taken")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet_loading()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    student, teacher = load_tokenizer(args.student), load_tokenizer(args.teacher)
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch), student, teacher)
        seconds = steps(Path(scratch), args)
    over = {name: taken / seconds[BASE] for name, taken in seconds.items()}
    print(f"\n{'step':30} {'seconds':>8} {'over':>6} {'bar':>5}")
    for name, taken in seconds.items():
        bar = STEPS[name][1]
        print(f"{name:30} {taken:8.3f} {over[name]:6.2f} {bar if bar < float('inf') else '-':>5}")
    aligned = alignment_ms(student, teacher, args.data, 512)
    print(
        f"\nalignment of {aligned['tokens']:.0f} tokens, ms: "
        + ", ".join(f"{name} {value:.4g}" for name, value in aligned.items() if name != "tokens")
    )
    print(f"spans are {aligned['python_dtw'] / aligned['byte_spans']:.0f} times as fast as dtw in plain Python")
    if args.json:
        print(json.dumps({"over_fkl": over, "seconds": seconds, "alignment_ms": aligned}))


if __name__ == "__main__":
    main()
