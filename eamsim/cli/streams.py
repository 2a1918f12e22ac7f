"""Standard output and standard error as they are in the world: closed, full, left by their reader, of few characters."""

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class Lasting(io.TextIOWrapper):
    """A standard stream whose reader may leave: what can no longer be written is dropped. Characters it has not are escaped."""

    def __init__(self, stream: TextIO, dropped: type[OSError]):
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
        self.dropped = dropped

    def write(self, text: str, /) -> int:
        with self.unless_gone():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with self.unless_gone():
            super().flush()

    @contextlib.contextmanager
    def unless_gone(self) -> Any:
        try:
            yield
        except self.dropped:
            discard(self)


def outlast() -> None:
    """Progress that cannot be written must not cost the result, nor a reader that has read enough the exit code."""
    sys.stderr = open(os.devnull, "w") if sys.stderr is None else Lasting(sys.stderr, OSError)  # noqa: SIM115
    if sys.stdout is not None:
        sys.stdout = Lasting(sys.stdout, BrokenPipeError)


def discard(stream: TextIO) -> None:
    """From now on into nothing, with what is still buffered; or Python fails once more when it flushes at exit."""
    with contextlib.suppress(OSError):  # in a test it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def escaped(text: object) -> str:
    """One line that moves no cursor: whatever is no printable character or space as its Python escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))
