"""The system calls that Python's `os` does not have, by ctypes: no compiled part, no dependency."""

from __future__ import annotations

import ctypes
import os
import platform

MACHINE = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
"""Which column of a table of system calls holds; None on other machines, where there is no filter."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_SYS_PIVOT_ROOT, _SYS_CAPSET = ((155, 126), (41, 91))[MACHINE or 0]
_SYS_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(what: str, number: int, *arguments: object) -> int:
    """A system call by number. Raises OSError that names `what`."""
    _libc.syscall.restype = ctypes.c_long
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *given), what)


def prctl(option: int, *arguments: object) -> int:
    given = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    given += [ctypes.c_ulong(0)] * (4 - len(given))
    return _checked(_libc.prctl(option, *given), f"prctl {option}")


def die_with_parent() -> None:
    """The kernel kills this process when the thread that forked it ends."""
    prctl(_PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Descendants whose parent has ended become children of this process, whatever group they are in."""
    prctl(_PR_SET_SUBREAPER, 1)


def forbid_attaching() -> None:
    """Nobody with the same uid may trace this process or read its memory."""
    prctl(_PR_SET_DUMPABLE, 0)


def no_new_privileges() -> None:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability; with no_new_privileges none can come back."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall("capset", _SYS_CAPSET, header, (ctypes.c_uint32 * 6)())


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    given = [each.encode() or None for each in (source, target, kind, data)]
    _checked(_libc.mount(given[0], given[1], given[2], ctypes.c_ulong(flags), given[3]), f"mount {target}")


def unmount(target: str) -> None:
    _checked(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def make_read_only(target: str) -> None:
    """A mount and all below it, without set-uid (Linux 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)
    at_recursive, at_fdcwd = 0x8000, -100
    syscall(f"mount_setattr {target}", _SYS_MOUNT_SETATTR, at_fdcwd, target.encode(), at_recursive, attributes, 32)


def pivot_root(new_root: str) -> None:
    """Make a mount the root and let go of the old one."""
    os.chdir(new_root)
    syscall("pivot_root", _SYS_PIVOT_ROOT, b".", b".")
    unmount(".")
    os.chdir("/")
