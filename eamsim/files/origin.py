"""What files say about where they come from: names and arguments, never the folders or users of the machine that made them."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HUB = "hf-hub:"
PREFIX = re.compile(r"(--[\w-]+=)?(local-dir:)?")


def public_name(argument: str) -> str:
    """A path, `local-dir:PATH` or `--option=PATH` with its last part alone; any other text, `hf-hub:ID` too, as it is."""
    prefix = PREFIX.match(argument)
    start = prefix.end() if prefix else 0
    if os.sep not in argument or argument.startswith(HUB, start):
        return argument
    return argument[:start] + (Path(argument[start:]).name or argument[start:])


def public_command() -> str:
    """The command line of this process, each argument as `public_name`."""
    return shlex.join(["eamsim", *map(public_name, sys.argv[1:])])


def public_names(names: Sequence[str], sources: Sequence[Path]) -> tuple[str, ...]:
    """Names of images, each of which begins with the path of its source, without the folders above that source."""
    parents = sorted((f"{source.parent}{os.sep}" for source in sources), key=len, reverse=True)
    return tuple(name.removeprefix(next((parent for parent in parents if name.startswith(parent)), "")) for name in names)


def without_folders(tree: Any) -> Any:
    """The JSON tree with every `file`, a path, by its last part alone."""
    if isinstance(tree, dict):
        return {name: public_name(item) if name == "file" else without_folders(item) for name, item in tree.items()}
    return [without_folders(item) for item in tree] if isinstance(tree, (list, tuple)) else tree
