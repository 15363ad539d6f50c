"""EvalPlus's own command, inside the sandbox: its tests, its verdicts (Liu et al. 2023).

It runs candidates and tests in processes of one family, so that cheats are kept out as well as it keeps them out; what
the sandbox adds is that nothing of it reaches the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stillhouse import sandbox
from stillhouse.mistakes import Mistake, shorten

_VERDICTS = {"pass": "passed", "fail": "failed", "timeout": "timeout"}
# EvalPlus asks how much memory there is where the sandbox has no /proc.
_PROGRAM = """
import os, shutil, sys
sys.path.insert(0, "/packages")
os.makedirs("/desk/proc")
with open("/desk/proc/meminfo", "w") as file:
    for name in ("MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached"):
        file.write(f"{{name}}: {{{memory} << 10}} kB\\n")
shutil.copy("/program/samples.jsonl", "/desk/samples.jsonl")
os.environ.update(TMPDIR="/desk", EVALPLUS_MAX_MEMORY_BYTES=str({memory} << 20), OPENBLAS_NUM_THREADS="1",
                  HUMANEVAL_OVERRIDE_PATH="/program/data.jsonl", MBPP_OVERRIDE_PATH="/program/data.jsonl")
import psutil
psutil.PROCFS_PATH = "/desk/proc"
from evalplus.evaluate import main
sys.argv = ["evalplus.evaluate", {dataset!r}, "--samples", "/desk/samples.jsonl", "--parallel", "{parallel}"]
main()
print("\\n{mark}")
print(open("/desk/samples_eval_results.json").read())
"""
_MARK = "==== results of EvalPlus"


def score(
    kind: sandbox.Kind,
    package: str,
    rows: Sequence[Mapping[str, Any]],
    programs: Sequence[Mapping[str, Any]],
    limits: sandbox.Limits,
) -> list[dict[str, Any]]:
    """EvalPlus's verdict on each program: {task, sample, verdict, plus}, of its base tests and of all of its tests.

    Args:
        package: the folder that EvalPlus is installed in.
        rows: its data: those of the problems that `programs` are for, and of no others.
        programs: {task, sample, candidate}.
        limits: of its whole run; `memory_mb` of each process.

    Raises:
        Mistake: it came to no result; the last line that it printed is named.
    """
    if not rows:
        raise Mistake(
            "data", "has no problem by the names that EvalPlus has", "give EvalPlus's own file, or --scorer=tests"
        )
    dataset = "mbpp" if "assertion" in rows[0] else "humaneval"
    parallel = max(1, limits.processes // 4)
    program = _PROGRAM.format(memory=limits.memory_mb, dataset=dataset, parallel=parallel, mark=_MARK)
    samples = [{"task_id": one["task"], "solution": one["candidate"]} for one in programs]
    files = {"data.jsonl": as_lines(rows), "samples.jsonl": as_lines(samples)}
    ended = sandbox.run(kind, program, limits, files, {"/packages": package})
    said, _, results = ended.output.decode(errors="replace").rpartition(f"{_MARK}\n")
    try:
        found = json.loads(results)["eval"]
        counted = dict.fromkeys(found, 0)
        lines = []
        for one in programs:
            result = found[one["task"]][counted[one["task"]]]
            counted[one["task"]] += 1
            base, plus = (_VERDICTS[str(result[key])] for key in ("base_status", "plus_status"))
            plus = plus if base == "passed" else base
            lines.append({"task": one["task"], "sample": one["sample"], "verdict": base, "plus": plus})
    except (ValueError, LookupError, TypeError):
        last = "time was up" if ended.timeout else (said.strip() or results.strip() or "nothing").splitlines()[-1]
        raise Mistake(
            "scorer", f"EvalPlus came to no result: {shorten(last, 80)}", "is --data in its format?"
        ) from None
    return lines


def as_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """A file of `rows`, as EvalPlus reads it."""
    return "".join(f"{json.dumps(dict(row))}\n" for row in rows)
