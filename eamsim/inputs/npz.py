"""The one way to read an .npz: arrays by name, every unreadable one refused in a line."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from eamsim.errors import BadFile
from eamsim.files.limits import NPZ_BYTES, NPZ_RATIO
from eamsim.files.reading import open_file

UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The arrays whose names are wanted, by name in the order of the file.

    BadFile where it is not a readable .npz without pickled objects: damaged or encrypted, two members of one name (of which NumPy would
    read one), members that are no arrays, arrays beyond the limits of an .npz or of the memory.
    """
    try:
        with open_file(path) as file, NpzFile(file, allow_pickle=False) as archive:
            names = archive.files
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise BadFile(f"{path}: expected one array of each name, got two of {', '.join(map(repr, twice)):.200}; write them anew")
            members = archive.zip.infolist() if archive.zip else []
            inflated = sum(member.file_size for member in members if wanted(member.filename.removesuffix(".npy")))
            if inflated > (limit := max(NPZ_BYTES, NPZ_RATIO * os.fstat(file.fileno()).st_size)):
                raise BadFile(f"{path}: expected arrays of at most {limit:,} bytes, got {inflated:,}; write several files, or uncompressed")
            found = {name: archive[name] for name in names if wanted(name)}
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFile(f"{path}: not a readable .npz without pickled objects ({reason:.200})") from error
    if foreign := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
        raise BadFile(f"{path}: expected arrays as numpy.savez writes them, got {foreign[0]!r:.80} (no NAME.npy); write it anew")
    return found
