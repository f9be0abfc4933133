"""A folder that a program filled as it liked: how much is in it, and removing it whole.

The tree may be deeper than a path can name or recursion can follow, may forbid its owner to look, and is full of
links; so it is taken level by level, below one open folder, and no link is followed.
"""

from __future__ import annotations

import os
import stat


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
    """Empty a folder. Subfolders are lifted to the top one by one, so that depth does not matter."""
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while names := os.listdir(top):
            for name in names:
                if not _is_folder(name, top):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
                try:
                    for each in os.listdir(inner):
                        if _is_folder(each, inner):
                            os.chmod(each, 0o700, dir_fd=inner)
                            os.rename(each, os.urandom(16).hex(), src_dir_fd=inner, dst_dir_fd=top)
                        else:
                            os.unlink(each, dir_fd=inner)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _is_folder(name: str, fd: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
