"""Fills the disk under every command that writes, at many sizes, and says what was left.

    PYTHONPATH=tests:tests/support python tests/fuzz/full_disk.py SIZES FOLDER [COMMAND...]

The sizes are evenly spread below that of the largest file that the command writes (its RLIMIT_FSIZE), with files of the same names there
before at every second one. Prints `COMMAND SIZE OUTCOME`, which is `refused` or what is wrong: another exit code than 3, more than one
line, a file that is neither what was there nor the whole new one, a file that is gone or that nobody expects.
"""

import resource
import sys
from pathlib import Path

from fuzz.kills import REMOVED, Whole
from fuzz.writing import OLD, Command, commands, contents, emptied, prepare, put, ready, run


def refused(command: Command, whole: Whole, folder: Path, limit: int, there: bool) -> list[str]:
    """What is wrong with a run that can write no file beyond the limit."""
    old = dict.fromkeys(command.outputs, OLD) if there and command.replaces else {}
    if command.resume is not None:
        old = {name: content for name, content in old.items() if not name.startswith(command.kept)}
    put(old, folder)
    code, said = run(command.arguments, folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    errors = [line for line in said.splitlines() if line.startswith(("error: ", "internal error: "))]
    found = [] if (code, len(errors)) == (3, 1) and "Traceback" not in said else [f"exit code {code}: {said[-300:]!r}"]
    left = contents(folder)
    for name, content in left.items():
        if content not in (old.get(name), whole.files.get(name)) and not name.startswith(command.kept or "\0"):
            found.append(f"{name} is neither old nor whole")
    return found + [f"lost {name}" for name in old.keys() - left.keys() - REMOVED]


def main(sizes: int, bench: Path, *chosen: str) -> int:
    prepare(bench)
    known = commands(bench)
    wrong = 0
    for name in chosen or known:
        ready(known[name], bench)
        whole = Whole(known[name], emptied(bench / "whole" / name))
        largest = max(map(len, whole.files.values()))
        for number in range(sizes):
            limit = number * largest // sizes
            outcome = "; ".join(refused(known[name], whole, emptied(bench / "full" / name), limit, number % 2 == 1)) or "refused"
            wrong += outcome != "refused"
            print(name, limit, outcome, flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]), 99))
