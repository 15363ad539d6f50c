"""Loss and gradient of CE + KD from hidden states and heads: ours, the peers, and the matrix products alone.

    python benchmarks/head.py [--quick] [--json] [--device cuda] [--losses todi jsd] [--vocabulary 50257] [--rows 256]

All implementations take turns in one process on the same synthetic problem; medians are compared: of process CPU time
on one thread, or of CUDA events. `over` is the time over the floor, which is the four matrix products alone, whole or
in blocks of 256 rows, whichever is faster. Peak memory is that of a process of its own, above its inputs. `masked` is
the share of rows without a label: ours drops them first, each peer does with them what its own code does.
Every implementation's loss and gradient is compared with ours. TRL's chunked divergence has no CE and does less work.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from head_peers import BETA, LOSSES, Problem, Result, build_step, ours, problem
from torch import Tensor

WIDTHS = {50_257: (768, 1_600), 128_256: (2_048, 4_096), 151_936: (1_024, 2_048)}  # V: d_s, d_t
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CPU_CELLS = [
    ("bf16", 50_257, 256), ("bf16", 50_257, 1_024), ("bf16", 50_257, 2_048), ("bf16", 151_936, 256),
    ("bf16", 151_936, 1_024), ("fp32", 50_257, 256), ("fp32", 50_257, 1_024), ("fp32", 151_936, 256),
]  # fmt: skip
CUDA_CELLS = [("bf16", 128_256, 8_192)]
CORE = ("forward_kl", "jsd", "todi", "adaptive_kl")  # the losses of a cell that costs minutes
FULL = ("forward_kl", "reverse_kl", "jsd", "todi", "adaptive_kl")
FLOORS = ("floor_whole", "floor_blocks")
PEAKS = [("ours", "todi"), ("ours", "jsd"), ("ours", "forward_kl"), ("full_logits", "todi"), ("trl_gkd", "jsd"),
         ("liger_256", "jsd"), ("liger_1024", "jsd")]  # fmt: skip
# Of |gradient by hidden states - ours|, relative. Peers that take log-softmaxes in bf16 are that far from exact.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.02}
LOOSE = {"trl_gkd": 0.2, "liger_256": 0.2, "liger_1024": 0.2}


@dataclass(frozen=True)
class Case:
    """One implementation of one loss in one cell (dtype, V, N)."""

    loss: str
    impl: str
    dtype: str
    V: int
    N: int
    masked: float = 0.0


@dataclass(frozen=True)
class Row:
    """What is reported of a case; None where it was not measured."""

    loss: str
    impl: str
    dtype: str
    V: int
    N: int
    d_s: int
    d_t: int
    seconds: float | None
    over_floor: float | None
    peak_mib: float | None
    masked: float


def cases_of(cell: tuple[str, int, int], losses: list[str], everything: bool) -> Iterator[Case]:
    """What runs in a cell. TRL's chunked divergence is at home on a GPU; on CPU it runs in the small cells only."""
    for impl in FLOORS:
        yield Case("-", impl, *cell)
    for loss in losses:
        yield Case(loss, "ours", *cell)
        if loss in FULL:
            yield Case(loss, "full_logits", *cell)
        if loss == "jsd":
            yield from (Case(loss, impl, *cell) for impl in ("trl_gkd", "liger_256", "liger_1024"))
        if loss in BETA and everything:
            yield Case(loss, "trl_chunked", *cell)
    for loss, impl in (("forward_kl", "ours"), ("jsd", "ours"), ("todi", "ours"), ("todi", "full_logits"),
                       ("jsd", "trl_gkd"), ("jsd", "liger_256")):  # fmt: skip
        if loss in losses and (everything or impl == "ours"):
            yield Case(loss, impl, *cell, masked=0.5)


def seconds_of(act: Callable[[], object], device: str) -> float:
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        act()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begun = time.process_time()
    act()
    return time.process_time() - begun


class Checks:
    """Whether each implementation did the same work: its loss and gradient beside those of ours."""

    def __init__(self) -> None:
        self._ours: dict[tuple[object, ...], tuple[float, Tensor]] = {}
        self.found: list[tuple[Case, float, float]] = []  # relative deviations of the loss and of its gradient

    def add(self, case: Case, given: Problem, result: Result) -> None:
        if case.impl in FLOORS:
            return
        kd_only = case.impl == "trl_chunked"
        key = (replace(case, impl="ours"), kd_only)
        if key not in self._ours:
            loss, d_hidden, _ = result if case.impl == "ours" else ours(case.loss, kd_only)(given)
            self._ours[key] = loss, d_hidden.float()
        loss, d_hidden = self._ours[key]
        gradient = (result[1].float() - d_hidden).norm() / d_hidden.norm()
        self.found.append((case, abs(result[0] - loss) / abs(loss), gradient.item()))

    def print(self) -> bool:
        """Print the worst of each implementation; whether all are within tolerance."""
        fine = True
        print("\nlargest relative deviation from ours of the loss and of its gradient by hidden states")
        for impl in dict.fromkeys(case.impl for case, *_ in self.found if case.impl != "ours"):
            for dtype in dict.fromkeys(case.dtype for case, *_ in self.found):
                mine = [found for found in self.found if (found[0].impl, found[0].dtype) == (impl, dtype)]
                if not mine:
                    continue
                loss, gradient = max(found[1] for found in mine), max(found[2] for found in mine)
                limit = LOOSE.get(impl, TOLERANCE[dtype]) if dtype == "bf16" else TOLERANCE[dtype]
                within = max(loss, gradient) <= limit
                fine &= within
                print(f"  {impl:12} {dtype}  {loss:.1e}  {gradient:.1e}{'' if within else f'  ABOVE {limit}'}")
        return fine


def fits(case: Case, device: str) -> bool:
    """Whether a case with all logits, about 15 fp32 tensors of them, leaves some memory to others."""
    if case.impl not in ("full_logits", "trl_gkd", "liger_1024"):
        return True
    rows = min(case.N, 1_536) if case.impl == "liger_1024" else case.N
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else _proc_kib("/proc/meminfo", "MemAvailable") * 1_024
    return 15 * 4 * rows * case.V < 0.8 * free


def run_cell(
    cell: tuple[str, int, int], cases: list[Case], options: argparse.Namespace, budget: float, checks: Checks
) -> list[Row]:
    """Times of all cases, in turns: `--repeats` each, or fewer so that the cell takes about `budget` seconds."""
    dtype, V, N = cell
    d_s, d_t = WIDTHS[V]
    given = problem(DTYPES[dtype], V, N, d_s, d_t, options.device)
    inputs = {share: given.masked(share) for share in {case.masked for case in cases}}
    steps: dict[Case, Callable[[Problem], Result]] = {}
    warm_up_s, clock = 0.0, time.perf_counter if options.device == "cuda" else time.process_time
    for case in cases:
        if not fits(case, options.device):
            print(f"left out for want of memory: {case}")
            continue
        step, given_here = build_step(case.impl, case.loss), inputs[case.masked]
        begun = clock()
        try:
            checks.add(case, given_here, step(given_here))
        except torch.OutOfMemoryError:
            print(f"out of memory: {case}")
            torch.cuda.empty_cache()
            continue
        warm_up_s += clock() - begun
        steps[case] = step
    repeats = max(1, min(options.repeats, int((budget - warm_up_s) / warm_up_s)))
    print(f"{dtype} V={V} N={N}: {len(steps)} cases, {repeats} repeats", flush=True)
    seconds: dict[Case, list[float]] = {case: [] for case in steps}
    for _ in range(repeats):
        for case, step in steps.items():
            seconds[case].append(seconds_of(functools.partial(step, inputs[case.masked]), options.device))
    medians = {case: statistics.median(values) for case, values in seconds.items()}
    lowest, fastest = min((medians[case], case.impl) for case in medians if case.impl in FLOORS)
    print(f"  floor: {fastest}, {', '.join(f'{c.impl} {medians[c]:.3f} s' for c in medians if c.impl in FLOORS)}")
    rows = [Row("-", "floor", dtype, V, N, d_s, d_t, lowest, 1.0, None, 0.0)]
    for case, median in medians.items():
        if case.impl not in FLOORS:
            rows.append(Row(case.loss, case.impl, dtype, V, N, d_s, d_t, median, median / lowest, None, case.masked))
    return rows


def _proc_kib(path: str, key: str) -> int:
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1])


def measure_peak(case: Case, device: str) -> float:
    """MiB above the inputs and a tiny warm-up, in this process."""
    step = build_step(case.impl, case.loss)
    d_s, d_t = WIDTHS[case.V]
    given = problem(DTYPES[case.dtype], case.V, case.N, d_s, d_t, device).masked(case.masked)
    step(problem(DTYPES[case.dtype], 512, 8, 64, 64, device))
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(given)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _proc_kib("/proc/self/status", "VmRSS")
    step(given)
    return (_proc_kib("/proc/self/status", "VmHWM") - before) / 2**10


def peak_in_subprocess(case: Case, device: str) -> float | None:
    given = ["--peak", json.dumps(asdict(case)), "--device", device]
    done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"no peak of {case}: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return float(done.stdout.splitlines()[-1])


def with_peaks(rows: list[Row], cells: list[tuple[str, int, int]], losses: list[str], device: str) -> list[Row]:
    rows = list(rows)
    if device == "cuda":
        torch.cuda.empty_cache()  # room for the other process
    for cell in cells:
        for impl, loss in PEAKS:
            case = Case(loss, impl, *cell)
            if loss not in losses or not fits(case, device):
                continue
            peak = peak_in_subprocess(case, device)
            same = [i for i, r in enumerate(rows) if Case(r.loss, r.impl, r.dtype, r.V, r.N, r.masked) == case]
            if same:
                rows[same[0]] = replace(rows[same[0]], peak_mib=peak)
            else:
                rows.append(Row(loss, impl, *cell, *WIDTHS[case.V], None, None, peak, 0.0))
    return rows


def bars_of(rows: list[Row], device: str) -> list[dict[str, object]]:
    """What was promised, of the rows that were measured."""
    by = {Case(row.loss, row.impl, row.dtype, row.V, row.N, row.masked): row for row in rows}
    bars: list[dict[str, object]] = []

    def bar(name: str, value: float | None, met: Callable[[float], bool], limit: str) -> None:
        if value is not None:
            bars.append({"name": name, "value": round(value, 4), "bar": limit, "met": met(value)})

    def at(loss: str, impl: str, N: int, masked: float = 0.0) -> Row | None:
        return by.get(Case(loss, impl, "bf16", 128_256 if device == "cuda" else 50_257, N, masked))

    def ratio(above: Row | None, below: Row | None, key: str = "seconds") -> float | None:
        top, bottom = (None if row is None else getattr(row, key) for row in (above, below))
        return None if top is None or bottom is None else top / bottom

    if device == "cuda":
        forward = at("forward_kl", "ours", 8_192)
        if forward is not None and forward.seconds is not None:
            bar("ours forward_kl ms", forward.seconds * 1e3, lambda v: v <= 45, "<= 45")
            gib = None if forward.peak_mib is None else forward.peak_mib / 1_024
            bar("ours forward_kl peak GiB", gib, lambda v: v <= 4, "<= 4")
        for loss in LOSSES:
            value = ratio(at(loss, "ours", 8_192), forward)
            bar(f"ours {loss} / ours forward_kl", value, lambda v: v <= 1.3, "<= 1.3")
        return bars
    for loss in LOSSES:
        row, limit = at(loss, "ours", 256), 1.5 if loss == "adaptive_kl" else 1.25
        bar(f"ours {loss} over floor", row and row.over_floor, lambda v, limit=limit: v <= limit, f"<= {limit}")
    for loss, impl, limit in (("todi", "full_logits", 2.0), ("jsd", "trl_gkd", 1.5), ("jsd", "liger_256", 1.3)):
        value = ratio(at(loss, impl, 256), at(loss, "ours", 256))
        bar(f"{impl} / ours, {loss}", value, lambda v, limit=limit: v >= limit, f">= {limit}")
    for loss, impl, limit in (("todi", "full_logits", 1 / 6), ("jsd", "liger_256", 1 / 2)):
        value = ratio(at(loss, "ours", 1_024), at(loss, impl, 1_024), "peak_mib")
        bar(f"peak of ours / {impl}, {loss} N=1024", value, lambda v, limit=limit: v <= limit, f"<= {limit:.3f}")
    for loss in ("forward_kl", "jsd", "todi"):
        value = ratio(at(loss, "ours", 2_048), at(loss, "ours", 1_024), "peak_mib")
        bar(f"peak of ours {loss}, N=2048 / 1024", value, lambda v: abs(v - 1) <= 0.05, "1 +- 0.05")
    for N in (256, 1_024, 2_048):
        for loss in ("forward_kl", "jsd", "todi"):
            value = ratio(at(loss, "ours", N, 0.5), at(loss, "ours", N))
            bar(f"half masked / whole, ours {loss} N={N}", value, lambda v: abs(v - 0.5) <= 0.075, "0.5 +- 0.075")
    return bars


def print_table(rows: list[Row]) -> None:
    print(f"\n{'dtype':5} {'V':>7} {'N':>5} {'loss':16} {'impl':12} {'masked':>6} {'s':>8} {'over':>6} {'peak MiB':>9}")
    for row in rows:
        seconds, over, peak = (
            "" if value is None else format(value, style)
            for value, style in ((row.seconds, ".4f"), (row.over_floor, ".2f"), (row.peak_mib, ".0f"))
        )
        print(
            f"{row.dtype:5} {row.V:7} {row.N:5} {row.loss:16} {row.impl:12} {row.masked:6} "
            f"{seconds:>8} {over:>6} {peak:>9}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, help="default: all in the small cells, four elsewhere")
    parser.add_argument("--vocabulary", nargs="+", type=int, choices=sorted(WIDTHS))
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--dtype", nargs="+", choices=sorted(DTYPES))
    parser.add_argument("--repeats", type=int, default=7, help="at most; fewer where a cell would take too long")
    parser.add_argument("--minutes", type=float, default=18.0, help="of all timings together, about")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="bf16, V=50,257, N=256 and no peaks: three minutes")
    parser.add_argument("--no_peaks", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object in the last line")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(measure_peak(Case(**json.loads(options.peak)), options.device))
        return

    if options.quick:
        options.minutes = min(options.minutes, 2.3)
    cells = CUDA_CELLS if options.device == "cuda" else CPU_CELLS[:1] if options.quick else CPU_CELLS
    if options.vocabulary or options.rows or options.dtype:  # every combination, not only the usual cells
        dtypes, vocabularies, counts = (list(dict.fromkeys(axis)) for axis in zip(*cells, strict=True))
        combined = itertools.product(
            options.dtype or dtypes, options.vocabulary or vocabularies, options.rows or counts
        )
        cells = [(str(dtype), int(V), int(N)) for dtype, V, N in combined]
    checks, rows = Checks(), []
    for cell in cells:
        everything = cell[2] <= 256 or options.device == "cuda"
        losses: list[str] = options.losses or (LOSSES if everything else list(CORE))
        cases = list(cases_of(cell, losses, everything))
        if options.quick and options.device == "cpu":
            cases = [case for case in cases if case.impl != "trl_chunked"]
        rows += run_cell(cell, cases, options, 60 * options.minutes / len(cells), checks)
    if not (options.quick or options.no_peaks):
        deep = [cell for cell in cells if cell[2] >= 1_024 and (options.device == "cuda" or cell[:2] == cells[0][:2])]
        rows = with_peaks(rows, deep, options.losses or LOSSES, options.device)
    print_table(rows)
    agree = checks.print()
    bars = bars_of(rows, options.device)
    bars.append({"name": "every implementation has our loss and gradient", "value": agree, "bar": True, "met": agree})
    print()
    for found in bars:
        print(f"{'met   ' if found['met'] else 'MISSED'} {found['name']}: {found['value']} ({found['bar']})")
    if options.json:
        name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
        meta = {"torch": torch.__version__, "device": options.device, "name": name, "threads": 1,
                "repeats_at_most": options.repeats}  # fmt: skip
        print(json.dumps({"rows": [asdict(row) for row in rows], "bars": bars, "meta": meta}))


if __name__ == "__main__":
    main()
