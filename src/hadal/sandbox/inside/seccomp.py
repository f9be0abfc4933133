"""The system calls that a job may make: a list of what one Python process needs, and everything else is denied.

No new process, no program to execute, no socket but a connected pair, no signal to others, no change of mode,
owner, times or attributes of a file (Landlock does not cover those), no tracing, mounting, namespaces or keys.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct

from . import linux

_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_LAST_KNOWN = 462  # a system call newer than this table is "not there", so that the C library falls back
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _EQUAL, _GREATER, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x06

# name: (number on x86_64, number on aarch64), from the kernel's unistd headers
_FREE: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287),
    "close": (3, 57), "close_range": (436, 436), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "lseek": (8, 62),
    "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "fallocate": (285, 47), "fadvise64": (221, 223),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "flock": (73, 32), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None),
    "symlinkat": (266, 36), "umask": (95, 166), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216),
    "mprotect": (10, 226), "madvise": (28, 233), "brk": (12, 214), "msync": (26, 227), "mincore": (27, 232),
    "membarrier": (324, 283), "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "rseq": (334, 293), "set_tid_address": (218, 96), "exit": (60, 93), "exit_group": (231, 94),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "pause": (34, None), "alarm": (37, None), "setitimer": (38, 103),
    "getitimer": (36, 102), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getresuid": (118, 148),
    "getresgid": (120, 150), "getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "getrusage": (98, 165), "sysinfo": (99, 179),
    "uname": (63, 160), "getcpu": (309, 168), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "getrandom": (318, 278), "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210),
    "wait4": (61, 260), "waitid": (247, 95), "arch_prctl": (158, None),
}  # fmt: skip

_ALL = 0xFFFFFFFF
_CLONE_THREAD, _CLONE_NEW_ANYTHING = 0x10000, 0x7E020000
_O_ACCMODE, _O_TRUNC = 3, 0o1000
_Condition = tuple[int, int, tuple[int, ...]]  # argument (its low word), mask, values of which it must be one


def _bounded(pid: int) -> dict[str, tuple[int | None, int | None, list[_Condition]]]:
    """What is allowed with some arguments only; all conditions of a call must hold."""
    # Opening for reading and truncating at once is a write that Landlock sees from its third version on only.
    opened = tuple(mode | cut for mode in (0, 1, 2) for cut in (0, _O_TRUNC) if mode or not cut)
    mode = _O_ACCMODE | _O_TRUNC
    return {
        "open": (2, None, [(1, mode, opened)]),
        "openat": (257, 56, [(2, mode, opened)]),
        "clone": (56, 220, [(0, _CLONE_THREAD | _CLONE_NEW_ANYTHING, (_CLONE_THREAD,))]),  # threads alone
        "kill": (62, 129, [(0, _ALL, (pid,))]),
        "tgkill": (234, 131, [(0, _ALL, (pid,))]),
        "prlimit64": (302, 261, [(0, _ALL, (0, pid))]),
        "prctl": (157, 167, [(0, _ALL, (15, 16))]),  # the thread's name
        # Not F_SETOWN and F_SETSIG, by which a file's events become signals to any process of the same uid.
        "fcntl": (72, 25, [(1, _ALL, (0, 1, 2, 3, 4, 5, 6, 7, 1030))]),
        "ioctl": (16, 29, [(1, _ALL, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))]),
        # Streams of a pair alone: a datagram of a pair can be sent to any socket that has a name.
        "socketpair": (53, 199, [(0, _ALL, (1,)), (1, 0xF, (1,))]),
    }  # fmt: skip


def program(pid: int, machine: int) -> list[tuple[int, int, int, int]]:
    """The filter for one process, as (code, jump if true, jump if false, operand)."""
    out = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT_ARCH[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for numbers in _FREE.values():
        if (number := numbers[machine]) is not None:
            out += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    denied = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    for x86, arm, conditions in _bounded(pid).values():
        if (number := (x86, arm)[machine]) is not None:
            body: list[tuple[int, int, int, int]] = []
            for argument, mask, values in conditions:
                body += [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask)]
                body += [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
                body += [denied]
            body += [(_RETURN, 0, 0, _ALLOW)]
            out += [(_EQUAL, 0, len(body), number), *body]
    clone3 = 435  # its flags are in memory, where a filter cannot look; without it the C library calls clone
    missing = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    return [*out, (_EQUAL, 0, 1, clone3), missing, (_GREATER, 0, 1, _LAST_KNOWN), missing, denied]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.c_char_p)]


def compiled(pid: int) -> bytes:
    """The filter as the kernel reads it."""
    if linux.MACHINE is None:
        raise OSError("there is no list of system calls for this machine")
    return b"".join(struct.pack("<HBBI", *each) for each in program(pid, linux.MACHINE))


_STAND_IN = 0x7E57C0DE  # no pid is as large


@functools.cache
def prepare() -> bytes:
    """The filter with a stand-in for the pid; made once in a keeper, and not in each of its jobs."""
    return compiled(_STAND_IN)


def restrict(pid: int) -> None:
    """Hold this process, of that pid, to the list from now on; it cannot be undone."""
    instructions = prepare().replace(struct.pack("<I", _STAND_IN), struct.pack("<I", pid))
    linux.no_new_privileges()
    pr_set_seccomp, filter_mode = 22, 2
    linux.prctl(pr_set_seccomp, filter_mode, ctypes.byref(_Program(len(instructions) // 8, instructions)))
