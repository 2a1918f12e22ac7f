"""Kills every command that writes, at its own file operations and at random moments, and says what was left.

    PYTHONPATH=tests:tests/support python tests/fuzz/kills.py SIGNAL FIRST COUNT FOLDER [COMMAND...]

A kill is its signal (KILL, INT or TERM) and its number, from which the command, the moment and whether files of the same names were there
before all follow. Prints `NUMBER COMMAND MOMENT OUTCOME` for each, where the outcome is `finished` (too late), `ended` or what is wrong:
a file that is neither what was there nor the whole new one, a file that is gone or nobody expects, another exit code, a traceback, or
another result once the command has continued.
"""

import json
import mmap
import os
import random
import re
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fuzz.writing import OLD, Command, commands, contents, emptied, prepare, put, ready, run

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
TEMPORARY = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{8}\.tmp")
REMOVED = {"x.eam.front.csv"}  # of a program that is no longer there


class Whole:
    """A run of a command to its end: its files, its file operations and its time."""

    def __init__(self, command: Command, folder: Path):
        counted = mmap.mmap(-1, 8)
        began = time.monotonic()
        code, said = run(
            command.arguments, folder, lambda: at_event(lambda number: counted.__setitem__(slice(8), struct.pack("q", number)))
        )
        self.seconds, self.operations = time.monotonic() - began, struct.unpack_from("q", counted)[0]
        self.files = contents(folder)
        assert code == 0, said
        assert not set(command.outputs) - self.files.keys(), said


def at_event(call: Callable[[int], object]) -> None:
    """From now on `call(number)` before every operation on files in the folder of this process."""
    here, number = os.getcwd(), 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal number
        path = arguments[0] if event in EVENTS else None
        if isinstance(path, (str, os.PathLike)) and os.path.abspath(path).startswith(f"{here}{os.sep}"):
            number += 1
            call(number)

    sys.addaudithook(hook)


def killed(command: Command, whole: Whole, folder: Path, signum: int, rng: random.Random) -> tuple[str, str]:
    """The moment, and the outcome."""
    there = rng.random() < 0.5 and command.replaces and command.resume is None
    old = dict.fromkeys(command.outputs, OLD) if there else {}
    put(old, folder)
    if rng.random() < 0.6:
        at = rng.randint(1, whole.operations)
        before = lambda: at_event(lambda number: os.kill(os.getpid(), signum) if number == at else None)  # noqa: E731
        moment, (code, said) = f"operation {at}/{whole.operations}", run(command.arguments, folder, before)
    else:
        delay = rng.uniform(0, whole.seconds)
        moment = f"{delay:.3f} s"
        code, said = run(command.arguments, folder, watch=lambda pid: (time.sleep(delay), os.kill(pid, signum)))
    return moment, "; ".join(faults(command, whole, folder, old, signum, code, said)) or ("finished" if code == 0 else "ended")


def faults(command: Command, whole: Whole, folder: Path, old: dict[str, bytes], signum: int, code: int, said: str) -> list[str]:
    expected = {0, -signum if signum == signal.SIGKILL else 128 + signum}
    found = [] if code in expected else [f"exit code {code}: {said[-300:]!r}"]
    if "Traceback" in said or (code > 0 and not said.rstrip().splitlines()[-1].startswith("interrupted")):
        found.append(f"said {said[-300:]!r}")
    left = contents(folder)
    for name, content in left.items():
        if TEMPORARY.fullmatch(name):
            found += [f"left {name}"] if signum != signal.SIGKILL else []
        elif name in command.outputs and name not in command.kept:
            found += [f"{name} is neither old nor whole"] if content not in (old.get(name), whole.files[name]) else []
        elif name not in whole.files and not name.startswith(command.kept or "\0"):
            found.append(f"left {name}")
    found += [f"lost {name}" for name in old.keys() - left.keys() - REMOVED]
    if code != 0 and command.resume is not None:
        found += continued(command, whole, folder)
    return found


def continued(command: Command, whole: Whole, folder: Path) -> list[str]:
    """What differs from an uninterrupted run, once the command has run again."""
    more = command.resume if any((folder / name).exists() for name in command.kept) else ()
    code, said = run((*command.arguments, *(more or ())), folder)
    after = contents(folder)
    wrong = [name for name, content in whole.files.items() if plain(name, after.get(name, b"")) != plain(name, content)]
    more_files = [name for name in after.keys() - whole.files.keys() if not TEMPORARY.fullmatch(name)]
    return [f"continued: {code}, other {wrong}, more {more_files}: {said[-300:]!r}"] if code or wrong or more_files else []


def plain(name: str, content: bytes) -> object:
    """A manifest without the command line, which says --resume, and what this run has done itself."""
    if not name.endswith(".json") or not content:
        return content
    return {key: item for key, item in json.loads(content).items() if key not in ("command", "programs_run", "resumed")}


def main(name: str, first: int, count: int, bench: Path, *chosen: str) -> int:
    signum = getattr(signal, f"SIG{name}")
    prepare(bench)
    known = commands(bench)
    names = list(chosen) or [each for each, command in known.items() for _ in range(command.share)]
    wholes: dict[str, Whole] = {}
    wrong = 0
    for number in range(first, first + count):
        rng = random.Random(f"{name} {number}")
        each = names[number % len(names)]
        if each not in wholes:
            ready(known[each], bench)
            wholes[each] = Whole(known[each], emptied(bench / "whole" / each))
        moment, outcome = killed(known[each], wholes[each], emptied(bench / "killed" / each), signum, rng)
        wrong += outcome not in ("finished", "ended")
        print(number, each, moment, outcome, flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:]), 99))
