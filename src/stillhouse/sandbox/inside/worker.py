"""The process that runs a candidate: it loads one file, answers calls of its functions, and knows no test."""

from __future__ import annotations

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

from . import plain


def main(folder: str) -> None:
    """Load `folder`/candidate.py; then answer, on standard output, the calls that standard input asks for.

    A call is [number, function, arguments, named arguments]; an answer [number, "value", value] or [number,
    "raised", class, text], [number, "unplain", why] or [number, "memory"]. Number 0 is the loading.
    """
    asked, answered = os.dup(0), os.dup(1)
    plain.silence()
    answer, module = _load(f"{folder}/candidate.py")
    plain.send(answered, [0, *answer])
    while module is not None:
        try:
            number, name, arguments, named = plain.receive(asked)
        except plain.Gone:
            return
        answer = _called(module, name, plain.decode(arguments), plain.decode(named))
        try:
            plain.send(answered, [number, *answer])
        except plain.Unplain as error:
            plain.send(answered, [number, "unplain", str(error)])


def _load(path: str) -> tuple[list[Any], ModuleType | None]:
    spec = spec_from_file_location("candidate", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["candidate"] = module  # dataclasses look it up
    try:
        spec.loader.exec_module(module)
    except MemoryError:
        return ["memory"], None
    except BaseException as error:  # noqa: BLE001  SystemExit is an answer too
        return ["raised", type(error).__name__, _text(error)], None
    return ["value", None], module


def _called(module: ModuleType, name: str, arguments: Any, named: Any) -> list[Any]:
    try:
        function = getattr(module, name, None)
        if function is None:
            return ["raised", "NameError", f"name '{name}' is not defined"]
        return ["value", plain.encode(function(*arguments, **named), opaque=True)]
    except plain.Unplain as error:
        return ["unplain", str(error)]
    except MemoryError:
        return ["memory"]
    except BaseException as error:  # noqa: BLE001  SystemExit is an answer too
        return ["raised", type(error).__name__, _text(error)]


def _text(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except BaseException:  # noqa: BLE001  the candidate's own class
        return ""
