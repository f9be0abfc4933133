"""A root of its own for a keeper: a small read-only tree, no network but a dead loopback, no process but its own.

Needs root, or a kernel that lets an ordinary user make user namespaces (some distributions' AppArmor does not).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from . import linux

WORK = "/work"


def enter(readable: Iterable[str], devices: Iterable[str], folder: str) -> None:
    """Move this process into a new cell and fork: the child, which is what returns, is its first process; the
    parent stays outside, waits, removes `folder`, which nobody needs in a cell, and ends as the child did."""
    above = os.open(os.path.dirname(folder), os.O_RDONLY | os.O_CLOEXEC)
    uid, gid = os.getuid(), os.getgid()
    spaces = linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWPID | linux.CLONE_NEWNET
    linux.unshare(spaces if uid == 0 else spaces | linux.CLONE_NEWUSER)
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    if child := os.fork():
        os.closerange(0, above)  # or the pipes would stay open when the child has ended
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.rmdir(os.path.basename(folder), dir_fd=above)
        os._exit(code & 0xFF)
    os.close(above)
    linux.die_with_parent()
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    root = "/tmp"  # any folder will do: what is mounted on it is seen in this cell alone
    linux.mount("tmpfs", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
    os.umask(0o022)
    os.mkdir(root + WORK)
    shown: list[str] = []
    for path in (*readable, *devices):
        _show(path, root, shown)
    linux.make_read_only(root)
    linux.pivot_root(root)


def _show(path: str, root: str, shown: list[str]) -> None:
    """Bind a path of the old root to its place in the new one. Links on the way to it are made again as links.
    Nothing is made below what is bound already: that would be made in the old root."""
    if not os.path.exists(path) or any(path == each or path.startswith(each + "/") for each in shown):
        return
    place = "/"
    for part in path.strip("/").split("/"):
        place = os.path.join(place, part)
        if os.path.islink(place):
            if not os.path.lexists(root + place):
                os.makedirs(os.path.dirname(root + place), exist_ok=True)
                os.symlink(os.readlink(place), root + place)
            return _show(os.path.realpath(path), root, shown)
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY))
    linux.mount(path, root + path, "", linux.MS_BIND | linux.MS_REC)
    shown.append(path)


def open_work(size: int, uid: int, gid: int) -> str:
    """A fresh folder for one job, in memory and bounded; returns its path."""
    files = max(256, size // 4096)
    options = f"size={size},nr_inodes={files},mode=700,uid={uid},gid={gid}"
    linux.mount("tmpfs", WORK, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, options)
    return WORK


def close_work() -> None:
    """Everything that a job wrote is gone after this."""
    while os.path.ismount(WORK):
        linux.unmount(WORK)
