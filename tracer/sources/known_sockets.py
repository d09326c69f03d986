"""Whether only root can have put a socket at a known path, so that podtracer may use it without a flag.

Known sockets are in folders of root. A user who owns or may write one of the folders on the way may put a socket of the
same name there. Then the path proves nothing.
"""

from __future__ import annotations

import os
import stat
from typing import Final

_MOST_LINKS: Final = 40  # as many as the kernel follows


def not_roots(path: str) -> str | None:
    """Why a user other than root may have put this socket there; ``None`` if only root can. ``path`` is absolute.

    Every folder on the way, those of symbolic links too, has to belong to uid 0, and no other user may write it. The
    socket has to belong to uid 0. Raises OSError for a path that leads nowhere.
    """
    at, links = "/", 0
    todo = _parts(path)
    while True:
        found = os.lstat(at)
        is_link = stat.S_ISLNK(found.st_mode)
        if found.st_uid != 0:
            return f"{at} belongs to uid {found.st_uid}"
        if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o022:
            return f"users other than root may write {at}"
        if is_link:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(f"too many symbolic links: {path}")
            target = os.readlink(at)
            todo = _parts(target) + todo
            at = "/" if target.startswith("/") else os.path.dirname(at)
            continue
        if not todo:
            return None
        part = todo.pop(0)
        at = os.path.dirname(at) if part == ".." else os.path.join(at, part)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
