"""The keepers of runs: each puts a program into its sandbox, waits, kills it in time, and says how it ended.

This file is run as a program of its own (`python -I -S launch.py CONTROL_FD`) and imports only the standard library:
it forks, and a process full of threads must not; and what it forks can hold nothing of its owner's memory. CONTROL_FD
is a socket that takes, a job a message, five open files: LIFELINE, STATUS, and the program's standard three. A keeper
is forked for each job. LIFELINE gives it one line of JSON, the specification, and then stays open: when it closes, its
other end is dead, and so must be the program. STATUS takes lines of JSON: {"error"} where the sandbox could not be
made, and last {"exit", "signal", "timeout", "cpu_s", "peak_mb"}.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

# From the kernel's headers.
NEW_USER, NEW_PID, NEW_NET, NEW_MOUNT, NEW_IPC, NEW_UTS = (
    0x10000000,
    0x20000000,
    0x40000000,
    0x20000,
    0x8000000,
    0x4000000,
)
NAMESPACES = NEW_USER | NEW_PID | NEW_NET | NEW_MOUNT | NEW_IPC | NEW_UTS
READ_ONLY, NO_SUID, NO_DEV, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
KEPT_FLAGS = (
    (os.ST_NODEV, NO_DEV),
    (os.ST_NOEXEC, 8),
    (os.ST_NOATIME, 1024),
    (os.ST_NODIRATIME, 2048),
    (4096, 1 << 21),
)
CLONE_NUMBER = {"x86_64": 56, "aarch64": 220}
PIVOT_NUMBER = {"x86_64": 155, "aarch64": 41}
SET_PDEATHSIG, SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER, DROP_BOUND = 1, 38, 22, 2, 24
NOBODY = 65534

# What candidates import most, loaded once before anything is forked.
PRELOADED = (
    "inside.worker", "inside.checker", "bisect", "collections", "copy", "datetime", "fractions", "functools", "hashlib",
    "heapq", "itertools", "math", "operator", "queue", "random", "re", "statistics", "string", "typing",
)  # fmt: skip

libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: keeps the interpreter's lock, so that a fork finds it held


def called(name: str, result: int) -> int:
    """The result of a call of the C library, or an OSError that names it."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    encoded = None if kind is None else kind.encode()
    found = libc.mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), data.encode() or None)
    called(f"mount {target}", found)


def start_in_namespaces(spec: dict[str, Any], status: int) -> int:
    """Fork a child that is the first process of namespaces of its own and becomes the program; its process id."""
    ready, mapped = os.pipe(), os.pipe()
    machine = os.uname().machine
    if machine not in CLONE_NUMBER:
        raise OSError(f"no system call numbers for {machine}")
    # clone with the flags of a fork: the child is process 1 of its namespace, and when it dies so do all others there.
    flags = ctypes.c_ulong(NAMESPACES | signal.SIGCHLD)
    ctypes.pythonapi.PyOS_BeforeFork()
    child = libc.syscall(CLONE_NUMBER[machine], flags, None, None, None, None)
    if child:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
        called("clone into namespaces", child)
        os.close(mapped[0])
        as_root = os.geteuid() == 0
        own, group = os.geteuid(), os.getegid()
        # Root has to step down: limits on processes do not hold for it, and its files would be the program's own.
        more = f"{NOBODY} {NOBODY} 1\n" if as_root and NOBODY not in (own, group) else ""
        Path(f"/proc/{child}/setgroups").write_text("deny", encoding="ascii")
        Path(f"/proc/{child}/uid_map").write_text(f"{own} {own} 1\n{more}", encoding="ascii")
        Path(f"/proc/{child}/gid_map").write_text(f"{group} {group} 1\n{more}", encoding="ascii")
        os.write(mapped[1], b"1")
        os.close(mapped[1])
        os.close(ready[0])
        os.close(ready[1])
        return child
    try:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        os.close(mapped[1])
        if os.read(mapped[0], 1) != b"1":
            raise OSError("the keeper wrote no identities")
        new_root(spec, machine)
        step_down(os.geteuid() == 0)
        limit(spec["limits"])
        confine(bytes.fromhex(spec["filter"]))
        become(spec, status)
    except BaseException as error:  # noqa: BLE001  whatever it is, the keeper has to hear of it
        say(status, {"error": f"{error.strerror if isinstance(error, OSError) and error.strerror else error!r}"})
    os._exit(70)


def new_root(spec: dict[str, Any], machine: str) -> None:
    """Leave the file system for one in memory that holds what the program needs, read-only, and an empty folder."""
    called("name the machine", libc.sethostname(b"sandbox", 7))
    mount("none", "/", None, RECURSIVE | PRIVATE)
    root = spec["root"]
    mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")
    for target, text in spec["links"]:
        place = Path(root + target)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(text)
    for source, target in spec["binds"]:
        bind(source, root + target)
    for path in spec["hidden"]:
        mount("tmpfs", root + path, "tmpfs", READ_ONLY | NO_SUID | NO_DEV, "size=4k,nr_inodes=1,mode=755")
    for folder, size in (("/desk", spec["limits"]["files_mb"]), *[("/dev/shm", 16)] * spec["shared_memory"]):
        place = Path(root + folder)
        place.mkdir(parents=True, exist_ok=True)
        mount("tmpfs", str(place), "tmpfs", NO_SUID | NO_DEV, f"size={size}m,nr_inodes=4096,mode=1777")
    os.chdir(root)
    Path("old").mkdir()
    called("pivot_root", libc.syscall(PIVOT_NUMBER[machine], b".", b"old"))
    os.chdir("/")
    called("leave the old root", libc.umount2(b"/old", DETACH))
    Path("/old").rmdir()
    mount("none", "/", None, REMOUNT | READ_ONLY | NO_SUID | NO_DEV)
    os.chdir("/desk")


def bind(source: str, target: str) -> None:
    """Show `source`, a file or folder, at `target`, read-only."""
    place = Path(target)
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    mount(source, target, None, BIND)
    had = os.statvfs(target).f_flag
    kept = sum(flag for bit, flag in KEPT_FLAGS if had & bit)  # a user namespace may not take these off
    mount("none", target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | kept)


def step_down(as_root: bool) -> None:
    """Be nobody where the keeper was root, and hold no capability either way."""
    for capability in range(64):
        if libc.prctl(DROP_BOUND, capability, 0, 0, 0) < 0:
            break
    if as_root:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    called("drop capabilities", libc.capset(header, (ctypes.c_uint32 * 6)()))


def limit(limits: dict[str, Any], count_processes: bool = True) -> None:
    """The limits that the kernel keeps for each process."""
    bounds = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: limits["files_mb"] << 20,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if count_processes:
        bounds[resource.RLIMIT_NPROC] = limits["processes"] + 32  # threads count
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def confine(program: bytes) -> None:
    """Give up gaining rights by starting programs, and all system calls that `program`, a seccomp filter, refuses."""
    os.setsid()
    called("no_new_privs", libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    called("die with the keeper", libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if program:

        class Program(ctypes.Structure):
            _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

        filled = Program(len(program) // 8, program)
        called("seccomp", libc.prctl(SET_SECCOMP, FILTER, ctypes.byref(filled), 0, 0))


def start_plainly(spec: dict[str, Any], status: int) -> int:
    """Fork a child that becomes the program, or bubblewrap with the program, under the kernel's limits alone."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        limit(spec["limits"], count_processes=False)
        if spec["kind"] == "bubblewrap":
            pass_filter(bytes.fromhex(spec["filter"]))
        become(spec, status)
    except OSError as error:
        say(status, {"error": str(error)})
    os._exit(70)


def pass_filter(program: bytes) -> None:
    """Have bubblewrap find the filter as its open file 3."""
    readable, writable = os.pipe()
    os.write(writable, program)
    os.close(writable)
    if readable != 3:
        os.dup2(readable, 3)
    os.set_inheritable(3, True)


def become(spec: dict[str, Any], status: int) -> None:
    """Be the program from here on: three open files (`status` closes itself), its environment, its signals."""
    for file in range(4 if spec["kind"] == "bubblewrap" else 3, 256):
        if file != status:  # that one closes itself
            with suppress(OSError):
                os.close(file)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if spec["chdir"]:
        os.chdir(spec["chdir"])
    if spec["call"] and spec["kind"] == "namespaces":
        play(spec, status)
    os.execve(spec["argv"][0], spec["argv"], spec["env"])


def play(spec: dict[str, Any], status: int) -> NoReturn:
    """Be a program of `inside` without starting an interpreter: this process has seen nothing but its specification."""
    os.close(status)  # what runs from here on has no word in how it ended
    code = 1
    try:
        os.environ.clear()
        os.environ.update(spec["env"])
        sys.path[:] = [path for path in sys.path if path != str(Path(__file__).parent)]
        importlib.import_module(f"inside.{spec['call']}").main("/program")
        code = 0
    finally:
        os._exit(code)


def keep(child: int, lifeline: int, wall_s: float) -> bool:
    """Wait until the child ends, the lifeline closes or the time is up, and kill it then; whether the time was up."""
    watched = os.pidfd_open(child)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    deadline = time.monotonic() + wall_s
    found = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    ended = any(fd == watched for fd, _ in found)
    if not ended:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        poll.unregister(lifeline)
        poll.poll()
    return not found


def say(status: int, content: dict[str, Any]) -> None:
    """One line for who ordered the run."""
    os.write(status, json.dumps(content).encode() + b"\n")


def look_after(lifeline: int, status: int) -> None:
    """Run what the specification says and report."""
    text = b""
    while not text.endswith(b"\n"):
        text += os.read(lifeline, 65536) or b"\n"
    if not text.strip():
        return  # who ordered the run has died
    spec = json.loads(text)
    try:
        child = (start_in_namespaces if spec["kind"] == "namespaces" else start_plainly)(spec, status)
    except OSError as error:
        say(status, {"error": error.strerror or str(error)})
        return
    for fd in (0, 1, 2):
        os.close(fd)  # else their other ends would never see that the program closed them
    late = keep(child, lifeline, spec["limits"]["wall_s"])
    if spec["kind"] == "none":
        kill_group(child)
    _, ended, used = os.wait4(child, 0)
    code, number = (os.WEXITSTATUS(ended), 0) if os.WIFEXITED(ended) else (0, os.WTERMSIG(ended))
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    say(status, {"exit": code, "signal": number, "timeout": late, "cpu_s": round(cpu, 3), "peak_mb": round(peak, 1)})


def kill_group(child: int) -> None:
    """Without namespaces: kill what is left of the program's session, as far as it stayed there."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> None:
    """Fork a keeper for every job, until the control closes."""
    sys.path.insert(0, str(Path(__file__).parent))
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who ordered the run; the lifeline tells of it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers that ended are not waited for
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, files, _, _ = socket.recv_fds(control, 1, 5)
        if not message:
            return
        if os.fork() == 0:
            control.detach()
            os.close(int(sys.argv[1]))
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            lifeline, status = (fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 10) for file in files[:2])
            for standard, file in enumerate(files[2:]):
                os.dup2(file, standard)
            for file in files:
                os.close(file)
            look_after(lifeline, status)
            os._exit(0)
        for file in files:
            os.close(file)


if __name__ == "__main__":
    main()
