"""Whole steps of MCW-KD and of cross-model attention beside steps as the released code takes them, and their memory.

    python benchmarks/mcw_step.py [--models tiny] [--vocabulary 32000] [--dtype float32] [--repeats 3] [--json]

A step is the forward of student and teacher, loss, backward, AdamW, on four examples whose every position is scored, so
that neither side gains by what it leaves out. The plain step has all logits at once, attention over a batch's padded
scores, and transports example by example (`transport.plain_example`); both compute the same loss, and it is compared.

Peaks are those of the loss alone, forwards and backwards, in a process of its own and above its inputs, with frozen
heads (a learnt one has a gradient of its own size); a tensor of tokens x vocabulary is what they must not grow by.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import LlamaConfig, LlamaForCausalLM
from transport import WORDS, leaves, plain_example

from stillhouse.data.pieces import Pieces
from stillhouse.head import Embedded, Head, Pairing, Predictions
from stillhouse.methods import Clock, Method
from stillhouse.methods import build as build_method
from stillhouse.methods.mcw_costs import Example
from stillhouse.methods.pair import TokenizerPair
from stillhouse.teacher import LiveTeacher
from stillhouse.training.distiller import Distiller

EXAMPLES, K, SHARE = 4, 400, 0.1
MODELS = {  # width and layers of student and teacher; in tiny ones the transports are nearly all of a step
    "small": {"student": (512, 4), "teacher": (1024, 8)},
    "tiny": {"student": (64, 1), "teacher": (128, 1)},
}
PEAKS = [(512, 32_000), (512, 128_000), (2048, 32_000), (2048, 128_000)]  # tokens, vocabulary
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def words(vocabulary: int) -> Pieces:
    """Tokens with names of a few letters."""
    names = tuple(WORDS[index % len(WORDS)] for index in range(vocabulary))
    return Pieces(names, tuple(name.encode() for name in names), {0: "eos"}, "characters", "", frozenset(), False)


def positions(length: int, examples: int) -> Pairing:
    """Every position of either side with the same one of the other."""
    index, bounds = np.arange(length * examples), np.arange(length * examples + 1)
    return Pairing.of((index, bounds), (index, bounds), (length,) * examples, (length,) * examples, "first")


def with_edits(method: Method, pairing: Pairing, ours: Tensor, theirs: Tensor) -> Pairing:
    """As a collator makes it; ids [B, S] and [B, T]."""
    if method.edits is None:
        return pairing
    sides = zip(ours.numpy(), theirs.numpy(), strict=True)
    return replace(pairing, edits=tuple(method.edits(*ids) for ids in sides))


def sized(name: str, student: Head, teacher: Head) -> Method:
    """A method for these heads."""
    method = build_method(name)
    method.size(student, teacher, 0)
    pieces = words(student.vocabulary), words(teacher.vocabulary)
    method.tokenizers = TokenizerPair(*pieces, student.vocabulary, teacher.vocabulary, None, "position", "first")
    return method


class Steps:
    """One student, teacher and batch, on which both kinds of step are taken."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.dtype, self.name = DTYPES[args.dtype], name
        models = {}
        for seed, (side, (width, layers)) in enumerate(MODELS[args.models].items()):
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=args.vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                num_attention_heads=8, max_position_embeddings=args.length,
            )  # fmt: skip
            models[side] = LlamaForCausalLM(config)
        self.student, self.teacher = models["student"], models["teacher"].to(self.dtype)
        live = LiveTeacher(self.teacher, args.vocabulary)
        self.method = sized(name, Head.of(self.student), Head.of(self.teacher))
        self.distiller = Distiller(self.student, self.method, live, args.vocabulary)
        self.optimizer = torch.optim.AdamW(self.distiller.parameters(), lr=0.0)  # so that the loss stays comparable
        generator = np.random.default_rng(0)
        highest = min(args.vocabulary, len(WORDS))
        ids = [generator.zipf(1.3, (EXAMPLES, args.length + 1)).clip(max=highest) - 1 for _ in range(2)]
        self.ids = [torch.from_numpy(side) for side in ids]
        self.pairing = positions(args.length, EXAMPLES)

    def batch(self, side: Tensor) -> dict[str, Any]:
        """As a collator makes it."""
        inputs, labels = side[:, :-1].contiguous(), side[:, 1:].contiguous()
        every = torch.arange(inputs.numel())
        return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": labels, "scored_at": every}

    def own(self) -> Tensor:
        """The library's loss."""
        ours, theirs = (self.batch(side) for side in self.ids)
        pairing = with_edits(self.method, self.pairing, ours["input_ids"], theirs["input_ids"])
        return self.distiller(**ours, teacher=theirs, pairing=pairing.as_dict(), clock=Clock())[0]

    def plain(self) -> Tensor:
        """The released code's, in its clean form: all logits, and loops."""
        settings, (ours, theirs) = self.method.settings, self.ids
        mine = self.student(input_ids=ours[:, :-1], output_hidden_states=True)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            his = self.teacher(input_ids=theirs[:, :-1], output_hidden_states=True)
        logits, target = mine.logits.float(), his.logits.float()  # [B, S, V] twice
        hidden, seen = mine.hidden_states[-1], his.hidden_states[-1]
        with torch.autocast("cpu", enabled=False):
            to_student, to_teacher = self.attended(hidden.float(), seen.float())
        z = (to_student @ self.student.lm_head.weight.detach().T).float()
        projected = (to_teacher.to(self.dtype) @ self.teacher.lm_head.weight.T).float()
        labels, heat = ours[:, 1:], settings["temperature"]
        right = z.detach().argmax(-1) == labels
        ce, of_z = (F.cross_entropy(rows.flatten(0, 1), labels.flatten(), reduction="sum") for rows in (logits, z))
        kd = of_z + (kl(logits, z.detach(), heat) * right).sum() + kl(projected, target, heat).sum()
        if self.name == "dskd_cma":
            return (1 - settings["kd_weight"]) * ce + settings["kd_weight"] * kd
        return ce + settings["kd_weight"] * kd + self.transports(logits, target, hidden.float(), seen.float())

    def attended(self, hidden: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-model attention over a batch: [B, S, d], [B, T, D]."""
        tables = [model.get_input_embeddings().weight.detach().float() for model in (self.student, self.teacher)]
        read, after = ([F.embedding(ids[:, part], table) for ids, table in zip(self.ids, tables, strict=True)]
                       for part in (slice(-1), slice(1, None)))  # fmt: skip
        maps: Any = self.method.projectors
        query, keys = maps["query"](torch.cat([read[0], after[0]], -1)), torch.cat([read[1], after[1]], -1)
        keys, label, seen = (rows / rows.std((1, 2), keepdim=True) for rows in (keys, after[1], seen))
        scores = query @ keys.mT / math.sqrt(keys.shape[-1])  # [B, S, T]
        return scores.softmax(-1) @ maps["t2s"](seen + label), scores.mT.softmax(-1) @ maps["s2t"](hidden)

    def transports(self, logits: Tensor, target: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
        """Both, example by example."""
        maps: Any = self.method.projectors
        with torch.autocast("cpu", enabled=False):
            ours, theirs = (rows.sort(-1, descending=True).values[..., :K] for rows in (logits, target))
            theirs = (1 - SHARE) * ours.detach() + SHARE * theirs
            seen = maps["ot"](seen)
            saliences = [maps["salience"](rows).squeeze(-1) for rows in (seen, hidden)]
            values = []
            for b in range(EXAMPLES):
                ids = self.ids[0][b, :-1].numpy(), self.ids[1][b, :-1].numpy()
                numbers = saliences[0][b], saliences[1][b]
                sides = Example((theirs[b], ours[b]), numbers, torch.zeros(0), (seen[b], hidden[b]))
                values.append(plain_example(sides, ids))
        return torch.stack(values).sum() * ours.shape[1]

    def timed(self, loss: Callable[[], Tensor]) -> tuple[float, float]:
        """Seconds of process CPU time of a whole step, and its loss."""
        start = time.process_time()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            value = loss()
        (value / (EXAMPLES * self.pairing.student_counts[0])).backward()
        self.optimizer.step()
        return time.process_time() - start, value.item()


def kl(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL(target || logits) of each row."""
    p, q = ((rows / temperature).log_softmax(-1) for rows in (target, logits))
    return (p.exp() * (p - q)).sum(-1)


def whole_step(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Medians of both kinds of step, taken in turns."""
    steps = Steps(name, args)
    steps.timed(steps.own)  # compiled kernels are loaded, memory is there
    turns = [(steps.timed(steps.own), steps.timed(steps.plain)) for _ in range(args.repeats)]
    own, plain = (statistics.median(turn[side][0] for turn in turns) for side in (0, 1))
    apart = abs(turns[0][0][1] / turns[0][1][1] - 1.0)
    return {"ms": 1e3 * own, "plain_ms": 1e3 * plain, "times": plain / own, "values_apart": apart}


def proc_kib(path: str, key: str) -> int:
    """A number of /proc."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1])


def problem(tokens: int, vocabulary: int) -> tuple[Predictions, Predictions]:
    """Predictions of examples of 128 tokens, with frozen heads."""
    found = []
    for seed, width in enumerate((512, 1024)):
        head = Head(torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(seed)) / 32)
        ids = torch.randint(vocabulary, (2, tokens), generator=torch.Generator().manual_seed(seed))
        embedded = Embedded(
            leaves(tokens, width, seed=9).detach(), leaves(tokens, width, seed=8).detach(), head.weight[0]
        )
        sequence = torch.arange(tokens) // 128
        hidden = leaves(tokens, width, seed=seed)
        found.append(Predictions(hidden, head, ids[0], sequence, tokens, ids[1], embedded=embedded))
    teacher = Predictions(**{**vars(found[1]), "pairing": positions(128, tokens // 128)})
    return found[0], teacher.detach()


def measure_peak(name: str, tokens: int, vocabulary: int) -> float:
    """MiB above the inputs and a small warm-up, in this process."""
    methods, found = [], []
    for student, teacher in (problem(128, 2_000), problem(tokens, vocabulary)):
        methods.append(sized(name, student.head, teacher.head))
        assert teacher.pairing is not None and student.inputs is not None and teacher.inputs is not None
        ids = student.inputs.view(-1, 128), teacher.inputs.view(-1, 128)
        found.append((student, replace(teacher, pairing=with_edits(methods[-1], teacher.pairing, *ids))))
    (_, method), (small, given) = methods, found
    methods[0](*small, Clock()).loss.backward()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = proc_kib("/proc/self/status", "VmRSS")
    method(*given, Clock()).loss.backward()
    return (proc_kib("/proc/self/status", "VmHWM") - before) / 2**10


def peaks(name: str) -> list[dict[str, float]]:
    """Of each size, beside one fp32 tensor of tokens x vocabulary."""
    found = []
    for tokens, vocabulary in PEAKS:
        given = [sys.executable, __file__, "--peak", name, str(tokens), str(vocabulary)]
        done = subprocess.run(given, capture_output=True, text=True, check=True)
        dense = tokens * vocabulary * 4 / 2**20
        peak = float(done.stdout.splitlines()[-1])
        found.append({"tokens": tokens, "vocabulary": vocabulary, "peak_mib": peak, "one_logits_mib": dense})
    return found


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--models", choices=tuple(MODELS), default="small")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=["dskd_cma", "mcw_kd"], help="methods")
    parser.add_argument("--no_peaks", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(measure_peak(args.peak[0], *map(int, args.peak[1:])))
        return
    found: dict[str, Any] = {name: whole_step(name, args) for name in args.only}
    for name, row in found.items():
        print(f"{name:10} {row['ms']:10.1f} ms  plain {row['plain_ms']:10.1f} ms  {row['times']:7.1f} times faster, "
              f"losses {row['values_apart']:.1e} apart")  # fmt: skip
    if not args.no_peaks:
        found["peaks"] = {name: peaks(name) for name in args.only}
        for name, rows in found["peaks"].items():
            for row in rows:
                print(name, row)
    if args.json:
        print(
            json.dumps(
                {
                    "length": args.length,
                    "vocabulary": args.vocabulary,
                    "models": args.models,
                    "dtype": args.dtype,
                    **found,
                }
            )
        )


if __name__ == "__main__":
    main()
