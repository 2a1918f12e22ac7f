"""What every kind of file shares: canonical JSON, refusals that say where and what, and files that are replaced in one step."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import reprlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eamsim.errors import BadFile

STALE_SECONDS = 3600  # no write lasts this long: an older temporary file was left by a crash
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxdict = 20


class Refused(Exception):
    """What is wrong and where; the path is still missing. advice: what to do, if not what the file's format suggests."""

    def __init__(self, where: str, expected: object, got: object, advice: str | None = None):
        super().__init__(f"{where}: expected {expected}, got {_short.repr(got)}")
        self.advice = advice


def canonical(tree: object) -> bytes:
    """JSON in the one form that is accepted: ASCII, sorted keys, no spaces, no NaN."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse_json(stream: bytes, where: str) -> dict[str, Any]:
    """An object in canonical form, which rules out duplicate keys, NaN and two spellings of one value; Refused otherwise."""
    try:
        tree = json.loads(stream)
        expected = canonical(tree)
    except (ValueError, RecursionError) as error:
        raise Refused(where, "JSON", str(error)) from None
    if expected != stream or not isinstance(tree, dict):
        raise Refused(where, "a JSON object in canonical form (sorted keys, no spaces)", stream[:60])
    return tree


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside the target, flushed to disk and renamed if all goes well; sweeps what earlier crashes left.

    A link stays, and what it leads to is replaced. OSError for a FIFO or a device, which a rename would do away with.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "Not a regular file")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another writer swept it first
            if leftover.stat().st_mtime < time.time() - STALE_SECONDS:
                leftover.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_all(folder: Path) -> Iterator[Callable[[str], Path]]:
    """For files of a folder, made if need be: the temporary path of each name, such as `taps/head.hex`.

    If all goes well they are renamed, the first one last; otherwise nothing is left, and no folder that was made for them. OSError.
    """
    made: list[Path] = []
    try:
        with contextlib.ExitStack() as files:

            def place(name: str) -> Path:
                path = folder / name
                for parent in (each for each in reversed(path.parents) if not each.exists()):
                    parent.mkdir()
                    made.append(parent)
                return files.enter_context(replacing(path))

            yield place
    except BaseException:
        for each in reversed(made):
            with contextlib.suppress(OSError):  # somebody else's file
                each.rmdir()
        raise


@contextlib.contextmanager
def written(path: Path, advice: str = "free some space, or choose another path") -> Iterator[Path]:
    """`replacing`, whose failure is a BadFile with this advice."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise BadFile(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
