"""Which system calls a program in a sandbox may not make, as a filter for the kernel (seccomp, classic BPF).

The namespaces already leave nothing to reach; the filter closes what has been used to climb out of namespaces, what
takes memory that no limit counts, and new processes. Numbers are those of the kernel's own tables.
"""

from __future__ import annotations

import errno
import platform
import struct

# name: (x86_64, aarch64); None where the architecture has no such call.
FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # other processes' memory, and the kernel's
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None), "vmsplice": (278, 75), "personality": (135, 92), "syslog": (103, 116),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "mknod": (133, None), "mknodat": (259, 33),
    # the network, and queues that bypass this filter
    "socket": (41, 198), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # the machine
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "fanotify_init": (300, 262),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # memory that belongs to no process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip
FORKS = {"fork": (57, None), "vfork": (58, None)}
CLONE, CLONE3, PRCTL = (56, 220), (435, 435), (157, 167)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
_CLONE_THREAD = 0x0001_0000
_CLONE_NAMESPACES = 0x7E02_0000  # user, pid, net, mount, ipc, uts, cgroup
_SET_PDEATHSIG = 1  # the kernel's promise that the program dies with its keeper
_X32 = 0x4000_0000  # a second set of numbers for the same calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF_0000, 0x8000_0000, 0x0005_0000


def seccomp_filter(processes: int, machine: str = "") -> bytes | None:
    """The filter as the kernel takes it, 8 bytes an instruction; None on a machine whose numbers are not known here.

    `processes` of 1 forbids every new process, but not threads; `machine` is by default this one.
    """
    column, architecture = _ARCHITECTURES.get(machine or platform.machine(), (-1, 0))
    if column < 0:
        return None
    refused = _ERROR | errno.EPERM
    steps = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER_AT), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, refused)]
    names = FORBIDDEN | (FORKS if processes == 1 else {})
    for number in (numbers[column] for numbers in names.values()):
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, refused)]
    # The arguments of clone3 lie in memory, where a filter cannot look; without it the C library takes clone.
    steps += [(_EQUAL, 0, 1, CLONE3[column]), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    steps += [(_EQUAL, 0, 4, PRCTL[column]), (_LOAD, 0, 0, _ARGUMENT_AT), (_EQUAL, 0, 1, _SET_PDEATHSIG)]
    steps += [(_RETURN, 0, 0, refused), (_RETURN, 0, 0, _ALLOW)]
    steps += [(_EQUAL, 1, 0, CLONE[column]), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, _ARGUMENT_AT)]
    steps += [(_ANY_BIT, 0, 1, _CLONE_NAMESPACES), (_RETURN, 0, 0, refused)]
    if processes == 1:
        steps += [(_ANY_BIT, 1, 0, _CLONE_THREAD), (_RETURN, 0, 0, refused)]
    steps += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
