"""Landlock: this process and its children may open only what is named (Linux 5.13, no privilege needed).

What it does not cover is left to the seccomp filter: `stat`, `chdir`, and changes of mode, owner and times.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from . import linux

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
_EXECUTE, _DEVICE_IOCTL = 1 << 0, 1 << 15
_MAKE_DEVICE_OR_SOCKET = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15}  # how many file rights a version knows; 16 from the fifth on


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32)]


def version() -> int:
    """The kernel's Landlock version; 0 where it has none or it is switched off."""
    try:
        return linux.syscall("landlock", _CREATE, None, 0, 1)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str], devices: Iterable[str]) -> None:
    """From now on: read below `readable`, all but executing below `writable`, read and write `devices`; nothing
    else, no TCP, no signal and no abstract socket across the border, where the kernel is new enough."""
    known = version()
    if not known:
        raise OSError("this kernel has no Landlock")
    rights = (1 << _RIGHTS_BY_VERSION.get(known, 16)) - 1
    attributes = [rights] + [3] * (known >= 4) + [3] * (known >= 6)
    buffer = (ctypes.c_uint64 * len(attributes))(*attributes)
    ruleset = linux.syscall("landlock_create_ruleset", _CREATE, buffer, 8 * len(attributes), 0)
    read = _READ_FILE | _READ_DIR
    write = rights & ~(_EXECUTE | _DEVICE_IOCTL | _MAKE_DEVICE_OR_SOCKET)
    for paths, allowed in ((readable, read), (writable, write), (devices, _READ_FILE | _WRITE_FILE)):
        for path in paths:
            _allow(ruleset, path, allowed & rights)
    linux.no_new_privileges()
    linux.syscall("landlock_restrict_self", _RESTRICT, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # what is not there, or out of reach, needs no permission
        return
    if not os.path.isdir(path):
        allowed &= _READ_FILE | _WRITE_FILE | _TRUNCATE
    rule = _PathBeneath(allowed, fd)
    linux.syscall("landlock_add_rule", _ADD, ruleset, 1, ctypes.byref(rule), 0)
    os.close(fd)
