"""Which sandbox works on this machine, found by trying: a program inside attempts what it must not be able to do."""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
from functools import cache
from pathlib import Path

from stillhouse.mistakes import Mistake
from stillhouse.sandbox.boxes import KINDS, Kind, Unavailable, run
from stillhouse.sandbox.limits import Limits
from stillhouse.sandbox.system_calls import seccomp_filter

# `worked` is what a program can do that it must not. {facts} is a JSON object of what there is to find.
_PROBE = """
import json, os, resource, socket
facts, worked = json.loads({facts!r}), []
def attempt(name, act):
    try:
        if act() is not False: worked.append(name)
    except (OSError, PermissionError): pass
def connect():
    with socket.socket() as line:
        line.settimeout(1)
        line.connect(("127.0.0.1", facts["port"]))
attempt("read a file outside", lambda: open(facts["secret"]).close())
attempt("write a file outside", lambda: open(facts["secret"] + "-written", "w").close())
attempt("write where Python is", lambda: open(os.__file__, "ab").close())
attempt("reach the network", connect)
attempt("signal a process outside", lambda: os.kill(facts["pid"], 0))
attempt("see processes outside", lambda: os.path.exists("/proc/" + str(facts["pid"])))
attempt("read the environment outside", lambda: "STILLHOUSE_PROBE" in os.environ)
attempt("be root", lambda: os.getuid() == 0)
attempt("start a process", lambda: os.fork() or os._exit(0))
attempt("use any memory", lambda: resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY)
print(json.dumps(worked))
"""
_AUTO = "auto"
CHOICES = (_AUTO, *KINDS)


@cache
def why_not(kind: Kind) -> str | None:
    """Why a sandbox of `kind` cannot be trusted on this machine, or None where it can."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-probe-") as folder, socket.socket() as listening:
        secret = Path(folder, "secret")
        secret.write_text(secrets.token_hex(), encoding="ascii")
        secret.chmod(0o644)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        facts = {"secret": str(secret), "port": listening.getsockname()[1], "pid": os.getpid()}
        try:
            ended = run(kind, _PROBE.format(facts=json.dumps(facts)), Limits(wall_s=20))
        except Unavailable as error:
            return str(error)
    try:
        worked = json.loads(ended.output)
    except ValueError:
        said = ended.output.decode(errors="replace").strip().splitlines()
        return f"no Python program runs in it (exit {ended.exit}, signal {ended.signal}: {(said or [''])[-1][:80]})"
    return f"a program in it can {worked[0]}" if worked else None


def choose(wanted: str = _AUTO, option: str = "--sandbox") -> Kind:
    """The sandbox to use: the first that works, or the one that is asked for, if it works; "none" only if asked for.

    Raises:
        Mistake: none works, or not the one asked for; it names `option`.
    """
    if wanted == "none":
        return "none"
    for kind in KINDS:
        if wanted in (_AUTO, kind) and kind != "none" and why_not(kind) is None:
            return kind
    reasons = {kind: why_not(kind) for kind in KINDS if kind != "none" and wanted in (_AUTO, kind)}
    wrong = "; ".join(f"{kind}: {str(reason)[:55]}" for kind, reason in reasons.items())
    mend = "install bubblewrap, allow user namespaces, or accept the danger with --sandbox=none"
    raise Mistake(option, f"no sandbox works here ({wrong})", mend)


def describe(kind: Kind) -> dict[str, object]:
    """What result files say of a sandbox: its kind, and whether system calls were filtered."""
    return {"kind": kind, "system_calls_filtered": kind != "none" and seccomp_filter(1) is not None}
