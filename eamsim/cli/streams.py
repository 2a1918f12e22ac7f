"""Standard output and standard error as they are in the world: closed, full, left by their reader, of few characters."""

import contextlib
import io
import os
import sys
import threading
from time import monotonic
from typing import Any, TextIO

QUIET_SECONDS, LONGEST_QUIET_SECONDS = 2.0, 5.0
POLL_SECONDS = 0.1


class Lasting(io.TextIOWrapper):
    """A standard stream whose reader may leave: what can no longer be written is dropped. Characters it has not are escaped."""

    def __init__(self, stream: TextIO, dropped: type[OSError]):
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
        self.dropped = dropped
        self.written = monotonic()

    def write(self, text: str, /) -> int:
        self.written = monotonic()
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


def patience(seconds: float, least: float = QUIET_SECONDS) -> float:
    """How many of them what has taken so many seconds may say nothing: ever longer, a tenth of its time."""
    return min(max(least, seconds / 10), LONGEST_QUIET_SECONDS)


class Heartbeat:
    """A line on standard error whenever a command has said nothing there for long, whatever it is doing; to be stopped before the exit.

    Long is two seconds on a terminal, and in a file, which keeps every line, a tenth of its time up to five.
    """

    def __init__(self, stream: TextIO):
        self.stream, self.start, self.over = stream, monotonic(), threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def _beat(self) -> None:
        while isinstance(self.stream, Lasting) and not self.over.wait(POLL_SECONDS):
            now = monotonic()
            if now - self.stream.written > (QUIET_SECONDS if self.stream.isatty() else patience(now - self.start)):
                self.stream.write(f"working: {now - self.start:.0f} s\n")

    def stop(self) -> None:
        self.over.set()
        self.thread.join()


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
