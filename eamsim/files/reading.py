"""The one door by which files from outside come in: regular files alone, whose size is known before a byte is read."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path


def open_file(path: str | os.PathLike[str], limit_bytes: int | None = None) -> FileIO:
    """An open file, unbuffered; OSError for a folder, a FIFO or a device, which might never end, and for one beyond the limit."""
    file = FileIO(path, opener=_without_waiting)
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if limit_bytes is not None and status.st_size > limit_bytes:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, of at most {limit_bytes:,}", str(path))
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """All of a file that `open_file` takes."""
    with open_file(path, limit_bytes) as file:
        return file.readall()


def read_text(path: Path, limit_bytes: int) -> str:
    """The same as UTF-8, its ends of lines as they are; UnicodeDecodeError, a ValueError, for other bytes."""
    return read_bytes(path, limit_bytes).decode("utf-8")


def _without_waiting(path: str, flags: int) -> int:
    """A FIFO opens at once, and is refused."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
