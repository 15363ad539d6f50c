"""The command line from end to end: find the verb, read its options, check them, run it; or say what was wrong.

Exit codes: 0 done, 2 a mistake of the user's (one line, no traceback), 130 stopped by Ctrl-C. Anything else is a bug
of ours and shows its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import ModuleType

from stillhouse import __version__
from stillhouse.cli import (
    demo,
    distill,
    evaluate,
    evaluate_agreement,
    evaluate_code,
    evaluate_judge,
    evaluate_tasks,
    export,
    generate,
    inspect,
    methods,
    report,
    sft,
    suite,
    vocab_map,
)
from stillhouse.cli.help import of_command, of_verb
from stillhouse.mistakes import LONGEST_LINE, Mistake, shorten, unknown_name

VERBS: dict[str, ModuleType] = {
    "sft": sft,
    "generate": generate,
    "distill": distill,
    "evaluate": evaluate,
    "evaluate agreement": evaluate_agreement,
    "evaluate tasks": evaluate_tasks,
    "evaluate code": evaluate_code,
    "evaluate judge": evaluate_judge,
    "suite": suite,
    "report": report,
    "export": export,
    "inspect": inspect,
    "vocab-map": vocab_map,
    "methods": methods,
    "demo": demo,
}
MISTAKE, STOPPED = 2, 130
DRY_RUN = "--dry-run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `stillhouse` with `arguments` (default: the process's own) and give its exit code."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except Mistake as mistake:
        print(shorten(f"stillhouse: {mistake}", LONGEST_LINE), file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("stillhouse: stopped; the same command goes on from here", file=sys.stderr)
        return STOPPED
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(of_command({name: verb.SUMMARY for name, verb in VERBS.items()}))
        return
    if arguments[0] == "--version":
        print(f"stillhouse {__version__}")
        return
    name, rest = _verb(arguments)
    if name.endswith((".yaml", ".yml")):
        raise Mistake("", f"a verb comes before '{name}'", f"stillhouse sft {name}, or stillhouse distill {name}")
    if name not in VERBS:
        raise unknown_name("", "verb", name, [verb for verb in VERBS if " " not in verb])
    if "-h" in rest or "--help" in rest:
        print(of_verb(name, VERBS[name].SUMMARY, VERBS[name].EXAMPLE))
        return
    _run_verb(name, rest)


def _verb(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two (`evaluate code`), and what follows it."""
    both, kinds = " ".join(arguments[:2]), [verb.split()[1] for verb in VERBS if verb.startswith(f"{arguments[0]} ")]
    if kinds and both not in VERBS and len(arguments) > 1 and arguments[1].isalpha():
        raise unknown_name(arguments[0], "kind", arguments[1], kinds)
    return (both, arguments[2:]) if both in VERBS else (arguments[0], arguments[1:])


def _run_verb(name: str, arguments: list[str]) -> None:
    from stillhouse.recipe.check import check
    from stillhouse.recipe.document import dump
    from stillhouse.recipe.parse import at_place, parse_located

    shows, rehearses = "--print_config" in arguments, DRY_RUN in arguments
    if rehearses and not hasattr(VERBS[name], "rehearse"):
        raise Mistake(DRY_RUN, f"is not asked by {name}", "it is for sft and distill")
    options, located = parse_located(name, [word for word in arguments if word not in ("--print_config", DRY_RUN)])
    if shows:
        print(dump(options.as_dict()), end="")
        return
    try:
        check(options)
    except Mistake as mistake:
        raise at_place(mistake, located, name) from None
    if rehearses:
        VERBS[name].rehearse(options)
        return
    if os.environ.get("RANK", "0") != "0" and not getattr(VERBS[name], "TOGETHER", False):
        return  # a launcher started several processes for what one does
    VERBS[name].run(options)
