"""What no file may allow: recipes and suites may come from a stranger, so only who types the command can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.mistakes import Mistake
from stillhouse.recipe.address import host_of

# What a suite's own command line can allow for all commands of its file.
_OF_A_SUITE = ("trust_remote_code", "run_generated_code", "key_variable")


@dataclass(frozen=True)
class OfASuite:
    """Where a suite's file says the options of one of its commands.

    Attributes:
        section: the suite's: set, or evaluate.instruct.
        typed: the keys in it that the suite's command line says in the file's place.
    """

    section: str
    typed: frozenset[str] = frozenset()


def refuse_from_file(values: Mapping[str, Any], of_a_suite: OfASuite | None = None) -> None:
    """Look through `values`, by dotted key, that a recipe, or a suite's file for one of its commands, says.

    Raises:
        Mistake: one has code run, a program started, prompts sent to another machine, or a key of the user's sent.
    """
    for key, value in values.items():
        name, text = key.rpartition(".")[2], str(value).lower()
        nothing = value is None or text in ("none", "null")
        if name in ("trust_remote_code", "run_generated_code") and not nothing and text != "false":
            raise Mistake(key, "a file cannot allow this", _mend(key, of_a_suite, "=true"))
        if name == "key_variable" and not nothing:  # which a server of the file's choice would get
            raise Mistake(key, "a file cannot name a key of yours", _mend(key, of_a_suite))
        if (name == "server" or key == "judge") and not nothing and not _near(str(value)):
            raise Mistake(key, "a file cannot have prompts sent to another machine", _mend(key, of_a_suite))
        if name == "launcher" and not nothing:  # any program
            raise Mistake(key, "a file cannot name a program to run", _mend(key, of_a_suite))
        if name == "sandbox" and nothing:
            raise Mistake(key, "a file cannot allow this", _mend(key, of_a_suite, "=none"))


def _mend(key: str, of_a_suite: OfASuite | None, value: str = "") -> str:
    """The option that allows on a command line what a file cannot; of a suite as often as not another key."""
    name = key.rpartition(".")[2]
    for_all = (name in _OF_A_SUITE or key == "judge") and (
        of_a_suite is not None or key.partition(".")[0] in ("set", "evaluate")
    )
    option = name if for_all else key if of_a_suite is None else f"{of_a_suite.section}.{key}"
    first = "remove it, and " if for_all or of_a_suite is not None else ""
    return f"{first}give --{option}{value} on the command line"


def _near(address: str) -> bool:
    """Whether a server is on this machine."""
    return host_of(address) in ("localhost", "127.0.0.1", "::1")
