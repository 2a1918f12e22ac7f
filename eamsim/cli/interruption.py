"""Ctrl-C and SIGTERM while a command runs: an exception, so that unfinished files and workers are cleaned up on its way out."""

import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any, NoReturn

AGAIN_SECONDS = 0.02


class Interrupted(KeyboardInterrupt):
    """By this signal. Notes that are added to it on the way are said: what was kept, and how to go on."""

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum


class Interruption:
    """From now on these signals raise Interrupted."""

    def __init__(self, signals: Iterable[signal.Signals]):
        self.signum = 0
        sys.unraisablehook = self.unraisable
        for each in signals:
            signal.signal(each, self.interrupt)

    def interrupt(self, signum: int, frame: object = None) -> NoReturn:
        self.signum = signum
        raise Interrupted(signum)

    def unraisable(self, error: Any) -> None:
        """sys.unraisablehook: an interruption that met a callback of C or a finaliser comes again; what fails because of it is silent."""
        if issubclass(error.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident  # which the signal must reach: it may be waiting in a call of the system
            again = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, self.signum))
            again.daemon = True
            again.start()
        elif not self.signum:
            sys.__unraisablehook__(error)

    def over(self) -> None:
        """The exit code is known: nothing changes it any more."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
