"""A folder that a program filled as it liked: how much is in it, and removing it whole.

The tree may be deeper than a path can name or recursion can follow, may forbid its owner to look, and is full of
links; so it is taken level by level, below one open folder, and no link is followed.
"""

from __future__ import annotations

import os
import stat

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def bytes_below(folder: str, enough: int) -> int:
    """Bytes that a tree takes, counting at least a block for each entry; stops at `enough`, which is also the answer
    where it cannot be looked into."""
    total, waiting = 0, [folder]
    while waiting and total < enough:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += 4096 + 512 * entry.stat(follow_symlinks=False).st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    if total >= enough:
                        break
        except FileNotFoundError:  # it is being changed as it is counted
            continue
        except OSError:  # hidden, or too deep to name
            return enough
    return total


def remove_below(folder: str) -> None:
    """Empty a folder, going down and up one level at a time with one folder open."""
    here = os.open(folder, _FOLDER)
    waiting = [_clear(here)]  # for each level down to this one, the subfolders that are still there
    try:
        while waiting[-1] or len(waiting) > 1:
            name = waiting[-1][-1] if waiting[-1] else ".."
            if name != "..":
                os.chmod(name, 0o700, dir_fd=here)
            before, here = here, os.open(name, _FOLDER, dir_fd=here)
            os.close(before)
            if name != "..":
                waiting.append(_clear(here))
            else:
                waiting.pop()
                os.rmdir(waiting[-1].pop(), dir_fd=here)
    finally:
        os.close(here)


def _clear(fd: int) -> list[str]:
    """Remove what is no folder; returns the folders."""
    names = os.listdir(fd)
    folders = [name for name in names if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)]
    for name in set(names).difference(folders):
        os.unlink(name, dir_fd=fd)
    return folders
