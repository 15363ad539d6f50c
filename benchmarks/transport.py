"""MCW-KD's transports beside plain loops that do the same, as the released code is written: times and their ratios.

    python benchmarks/transport.py [--length 512] [--repeats 5] [--pieces] [--json]

Both sides take turns in one process; process CPU time, medians, forward and backward. `step` is the transports of a
batch of four examples, both kinds, from the likeliest logits and hidden states on, with edit distances and warping,
which the loops do in plain Python; models, heads and cross-model attention are the same for both and are left out.
Whole steps, with models and AdamW, and peaks of memory are those of `mcw_step.py`, which is run after the pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.methods.mcw_costs import EditCosts, Example, hidden_costs, logit_costs
from stillhouse.transport import context_windows, edit_costs, kl_divergences, transport_cost

Ids = tuple[np.ndarray, np.ndarray]
WEIGHTS = torch.tensor([[0.2, 0.5, 0.3], [0.3, 0.5, 0.2]])
ASKED = {"sinkhorn": 5.0, "windows": 20.0, "kl": 10.0, "step": 20.0}
WORDS = [f"{chr(97 + index % 26)}{index:x}" for index in range(3000)]


def plain_sinkhorn(costs: Tensor) -> Tensor:
    """A hundred iterations, all of them kept."""
    rows, columns = costs.shape
    kernel = torch.exp(-0.1 * costs)
    u = costs.new_full((rows,), 1 / rows)
    v = costs.new_full((columns,), 1 / columns)
    for _ in range(100):
        v = (1 / columns) / (kernel.T @ u + 1e-9)
        u = (1 / rows) / (kernel @ v + 1e-9)
    return (u[:, None] * kernel * v * costs).sum()


def plain_windows(rows: Tensor) -> Tensor:
    """Position by position."""
    return torch.stack([rows[max(0, at - 4) : at + 5].mean(0) for at in range(len(rows))])


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    """With a tensor [M, N, k]."""
    return (p[:, None] * torch.log(p[:, None] / (q[None] + 1e-7))).sum(-1)


def plain_distance(a: str, b: str) -> int:
    """Levenshtein's, by rows."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        here = [i]
        for j, y in enumerate(b, 1):
            here.append(min(before[j] + 1, here[-1] + 1, before[j - 1] + (x != y)))
        before = here
    return before[-1]


def plain_path(rows: list[str], columns: list[str], known: dict[tuple[str, str], int]) -> Tensor:
    """Edit distances on the warped path, 0 elsewhere: [M, N]."""
    n, m = len(rows), len(columns)
    costs = np.empty((n, m))
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            if (a, b) not in known:
                known[a, b] = plain_distance(a, b)
            costs[i, j] = known[a, b]
    table = np.full((n + 1, m + 1), np.inf)
    table[0, 0] = 0
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            table[i, j] = costs[i - 1, j - 1] + min(table[i - 1, j - 1], table[i - 1, j], table[i, j - 1])
    found = torch.zeros(n, m)
    i, j = n, m
    while i and j:
        found[i - 1, j - 1] = costs[i - 1, j - 1]
        move = int(np.argmin([table[i - 1, j - 1], table[i - 1, j], table[i, j - 1]]))
        i, j = i - (move != 2), j - (move != 1)
    return found


def plain_example(example: Example, ids: Ids) -> Tensor:
    """Both transports of one example."""
    p, q = ((side / 2).softmax(-1) for side in example.logits)
    a, b = (side.sigmoid() for side in example.saliences)
    of_logits = [(p[:, None] - q[None]).norm(dim=-1), plain_kl(p, q), (a[:, None] - b[None]).abs()]
    ours, theirs = ([WORDS[index] for index in side] for side in ids)
    known: dict[tuple[str, str], int] = {}
    edits = (plain_path(ours, theirs, known).T + plain_path(theirs, ours, {})) / 2
    x, y = (plain_windows(side) for side in example.hidden)
    gaps = torch.cdist(x, y)
    x, y = (side / (side.norm(dim=-1, keepdim=True) + 1e-7) for side in (x, y))
    of_hidden = [edits, gaps / (gaps.max() + 1e-7), 1 - x @ y.T]
    kinds = zip(WEIGHTS, (of_logits, of_hidden), strict=True)
    return torch.stack([plain_sinkhorn(sum_of(weights, costs)) for weights, costs in kinds]).sum()


def sum_of(weights: Tensor, costs: list[Tensor]) -> Tensor:
    """The weighted sum of costs."""
    return torch.stack([weight * cost for weight, cost in zip(weights, costs, strict=True)]).sum(0)


def own_example(example: Example, ids: Ids, edits: EditCosts) -> Tensor:
    """The same by the library."""
    costs = edit_costs(edits(*ids), len(ids[1]), len(ids[0]))
    example = Example(example.logits, example.saliences, costs, example.hidden)
    kinds = zip(WEIGHTS, (logit_costs(example), hidden_costs(example)), strict=True)
    return torch.stack([transport_cost(torch.einsum("c,cmn->mn", weights, costs)) for weights, costs in kinds]).sum()


def leaves(*shape: int, seed: int) -> Tensor:
    """Random numbers that want gradients."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def pairs(length: int) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """Of each piece the library's and the plain one."""
    n, k, d = length, 400, 768
    costs = torch.rand(n, n, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = leaves(n, d, seed=1)
    weights = torch.randn(n, d, generator=torch.Generator().manual_seed(4))
    logits = [leaves(n, k, seed=seed) for seed in (2, 3)]
    generator = np.random.default_rng(0)
    batch, ids = [], []
    for seed in range(0, 24, 6):
        sides = [leaves(n, size, seed=seed + at) for at, size in enumerate((k, k, d, d))]
        numbers = leaves(n, seed=seed + 4), leaves(n, seed=seed + 5)
        batch.append(Example((sides[0], sides[1]), numbers, torch.zeros(0), (sides[2], sides[3])))
        ours, theirs = (generator.zipf(1.3, n).clip(max=len(WORDS)) - 1 for _ in range(2))
        ids.append((ours, theirs))
    edits = EditCosts(WORDS, WORDS)

    def of_batch(one: Callable[[Example, Ids], Tensor]) -> Tensor:
        return torch.stack([one(example, side) for example, side in zip(batch, ids, strict=True)]).sum()

    def kl(of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return of(*(side.softmax(-1) for side in logits)).sum()

    return {
        "sinkhorn": (lambda: transport_cost(costs), lambda: plain_sinkhorn(costs)),
        "windows": (
            lambda: context_windows(rows, 4).mul(weights).sum(),
            lambda: plain_windows(rows).mul(weights).sum(),
        ),
        "kl": (lambda: kl(kl_divergences), lambda: kl(plain_kl)),
        "step": (
            lambda: of_batch(lambda example, sides: own_example(example, sides, edits)),
            lambda: of_batch(plain_example),
        ),
    }


def timed(function: Callable[[], Tensor]) -> tuple[float, float]:
    """Seconds of process CPU time, forward and backward, and the value."""
    start = time.process_time()
    value = function()
    value.backward()
    return time.process_time() - start, value.item()


def whole_steps(length: int) -> dict[str, Any]:
    """What `mcw_step.py` finds, in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("mcw_step.py")), f"--length={length}", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *table, last = done.stdout.splitlines()
    print(*table, sep="\n")
    return json.loads(last)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--length", type=int, default=512, help="positions of either side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pieces", action="store_true", help="no whole steps and no peaks of memory")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {}
    for name, (own, plain) in pairs(args.length).items():
        repeats = args.repeats if name != "step" else max(1, args.repeats // 3)
        timed(own)  # compiled kernels are loaded, memory is there
        turns = [(timed(own), timed(plain)) for _ in range(repeats)]
        seconds = [statistics.median(turn[side][0] for turn in turns) for side in (0, 1)]
        apart = abs(turns[0][0][1] / turns[0][1][1] - 1.0)
        found[name] = {
            "ms": 1e3 * seconds[0],
            "plain_ms": 1e3 * seconds[1],
            "times": seconds[1] / seconds[0],
            "asked": ASKED[name],
            "values_apart": apart,
        }
    for name, row in found.items():
        print(f"{name:10} {row['ms']:10.1f} ms  plain {row['plain_ms']:10.1f} ms  {row['times']:7.1f} times faster "
              f"(asked {row['asked']:g}), values {row['values_apart']:.1e} apart", flush=True)  # fmt: skip
    steps = {} if args.pieces else {"whole_steps": whole_steps(args.length)}
    if args.json:
        about = {"length": args.length, "threads": args.threads, "torch": torch.__version__}
        print(json.dumps({**about, **found, **steps}))


if __name__ == "__main__":
    main()
