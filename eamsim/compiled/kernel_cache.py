"""Where compiled kernels are kept between processes: sealed files in a folder that nobody else can write, as what they hold is executed.

A file bears its whole key in its name and its own SHA-256 before its content: half-written, damaged and outdated ones are never run, and
processes that write at the same time cannot mix theirs up.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

SEAL_BYTES = 32
MEND = "kernels are compiled anew at every start; set NUMBA_CACHE_DIR to a folder of your own that can be written"

log = logging.getLogger("eamsim.engine")


class Folder(NamedTuple):
    path: Path | None
    """None where not even a temporary one can be made."""
    is_temporary: bool


@cache
def folder() -> Folder:
    """The one that is wanted, made if need be; where that cannot be used, with a warning, one that is deleted when this process ends."""
    try:
        return Folder(private(wanted()), is_temporary=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        reason = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else str(error)
    log.warning("kernel cache: %s; %s", reason, MEND)
    try:
        temporary = tempfile.mkdtemp(prefix="eamsim-")
    except OSError:
        return Folder(None, is_temporary=True)
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Folder(Path(temporary), is_temporary=True)


def wanted() -> Path:
    """What NUMBA_CACHE_DIR says, else the user's own; RuntimeError where there is no home directory."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eamsim" / "numba"


def private(path: Path) -> Path:
    """The folder, made if need be; OSError unless it is one that only this user, or root, can write."""
    if not path.is_absolute():
        raise OSError(f"expected an absolute path, got {path}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(path.stat()):
        raise OSError(f"{path} belongs to another user, or others can write to it: it is not used (chmod 700, or delete it)")
    return path


def is_private(status: os.stat_result) -> bool:
    """Whether only this user, or root, can have written it."""
    return not hasattr(os, "geteuid") or (status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def read(name: str) -> bytes | None:
    """The content kept under this name; None if there is none that is whole and ours."""
    place = folder().path
    if place is None:
        return None
    try:
        with open(place / name, "rb") as file:
            sealed = file.read() if is_private(os.fstat(file.fileno())) else b""
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("kernel cache: %s cannot be read (%s): compiled again", place / name, error.strerror)
        return None
    seal, content = sealed[:SEAL_BYTES], sealed[SEAL_BYTES:]
    if hashlib.sha256(content).digest() == seal:
        return content
    log.warning("kernel cache: %s is damaged or another user's: compiled again", place / name)
    return None


def write(name: str, content: bytes) -> None:
    """Keep the content under this name, whole or not at all; a warning if it cannot be kept."""
    place = folder().path
    if place is None:
        return
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=place)
        with open(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary, place / name)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        log.warning("kernel cache: %s cannot be written (%s); %s", place, error.strerror, MEND)
