"""What no file may allow: recipes and suites may come from a stranger, so only who types the command can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stillhouse.mistakes import Mistake
from stillhouse.recipe.address import host_of

# What a suite's own command line can allow for all commands of its file.
_OF_A_SUITE = ("trust_remote_code", "run_generated_code", "key_variable")


def refuse_from_file(values: Mapping[str, Any], *, of_a_suite: bool = False) -> None:
    """Look through `values`, by dotted key, that a recipe, or a suite's file for one of its commands, says.

    Raises:
        Mistake: one has code run, a program started, prompts sent to another machine, or a key of the user's sent.
    """
    for key, value in values.items():
        name, text = key.rpartition(".")[2], str(value).lower()
        nothing = value is None or text in ("none", "null")
        option = f"--{name if of_a_suite else key}"
        mend = f"give {option} on the command line" if not of_a_suite or name in _OF_A_SUITE else "remove it"
        if name in ("trust_remote_code", "run_generated_code") and not nothing and text != "false":
            raise Mistake(key, "a file cannot allow this", f"give {option}=true on the command line")
        if name == "key_variable" and not nothing:  # which a server of the file's choice would get
            raise Mistake(key, "a file cannot name a key of yours", mend)
        if name == "server" and not nothing and not _near(str(value)):
            raise Mistake(key, "a file cannot have prompts sent to another machine", mend)
        if name == "launcher" and not nothing:  # any program
            raise Mistake(key, "a file cannot name a program to run", mend)
        if name == "sandbox" and nothing:
            raise Mistake(
                key, "a file cannot allow this", mend if of_a_suite else f"give {option}=none on the command line"
            )


def _near(address: str) -> bool:
    """Whether a server is on this machine."""
    return host_of(address) in ("localhost", "127.0.0.1", "::1")
