"""What ends a command becomes one line on standard error and an exit code (eamsim/errors.py); a bug never looks like a mismatch."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

import typer

from eamsim.cli.streams import discard, escaped
from eamsim.errors import INTERNAL, BadFile, UserError

UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])  # which Typer does not name
DEBUG = "EAMSIM_DEBUG"


def outcome(command: Callable[[], None]) -> int:
    """Run it; its exit code."""
    try:
        try:
            command()
        finally:
            settle()
    except typer.Exit as stop:
        return stop.exit_code
    except KeyboardInterrupt as error:
        return interrupted(error)
    except UsageError as error:
        return shown(error)
    except Exception as error:
        if stop := interruption_behind(error):
            return interrupted(stop)
        if os.environ.get(DEBUG):
            traceback.print_exception(error)
        code, *lines = explained(error)
        return said(code, *lines)
    return 0


def interruption_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """What the error came from, where C code or a cleaner made another error of an interruption."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def interrupted(error: KeyboardInterrupt) -> int:
    return said(128 + getattr(error, "signum", signal.SIGINT), ": ".join(["interrupted", *getattr(error, "__notes__", ())]))


def shown(error: Any) -> int:
    """Typer's own text; its message may hold what a file is called."""
    error.message = "\n".join(map(escaped, error.message.split("\n")))
    error.show()
    return UserError.exit_code


def explained(error: Exception) -> tuple[Any, ...]:
    """The exit code and the line of an error that ends a command; of a UserError as many as it has."""
    match error:
        case UserError():
            return error.exit_code, f"error: {error.args[0]}", *error.args[1:]
        case MemoryError():
            return INTERNAL, f"error: out of memory ({error or 'no size given'}); run fewer images at a time, or close other programs"
        case OSError():
            where = "" if error.filename is None else f"{error.filename}: "
            return BadFile.exit_code, f"error: {where}{error.strerror or error}; see that it exists, may be read and written, and has room"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    advice = "this is a bug of eamsim: report it with `eamsim doctor` and what the same command says with EAMSIM_DEBUG=1 before it"
    return INTERNAL, f"internal error: {type(error).__name__}: {error} ({place}); {advice}"


def said(code: int, *lines: str) -> int:
    print(*map(escaped, lines), sep="\n", file=sys.stderr)
    return code


def settle() -> None:
    """Write what is buffered for standard output, or drop it: Python must not fail once more when it flushes at exit."""
    if (stdout := sys.stdout) is None:
        return
    try:
        stdout.flush()
    except OSError:
        discard(stdout)
