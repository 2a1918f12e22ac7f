"""`eamsim` and `python -m eamsim`: from here on an interruption is one line and an exit code, never a traceback."""

import os
import sys
from types import TracebackType
from typing import NoReturn


def leave(signum: int, frame: object = None) -> NoReturn:
    """At once; only where nothing of ours is open yet, or no longer."""
    os.write(2, b"interrupted\n")
    os._exit(128 + signum)


def last_word(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: an interruption that nobody caught."""
    if issubclass(kind, KeyboardInterrupt):
        leave(getattr(error, "signum", 2))
    sys.__excepthook__(kind, error, trace)


sys.excepthook = last_word


def entry() -> NoReturn:
    """The command line as a process of its own."""
    import signal

    signals = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) != signal.SIG_IGN]  # as after nohup
    for each in signals:
        signal.signal(each, leave)
    from eamsim.cli import main
    from eamsim.cli.interruption import Interruption
    from eamsim.cli.streams import Heartbeat, outlast

    outlast()
    interruption, heartbeat = Interruption(signals), Heartbeat(sys.stderr)
    try:
        main()
    finally:
        interruption.over()
        heartbeat.stop()


if __name__ == "__main__":
    entry()
