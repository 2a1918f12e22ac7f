"""`read_npz`: every .npz that NumPy cannot read, or of which it would read half, is one line."""

import io
import re
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eamsim.errors import BadFile
from eamsim.inputs.npz import read_npz


def npy(header: str | None = None) -> bytes:
    """An array as a file; with another text as its header."""
    stream = io.BytesIO()
    np.save(stream, np.arange(3))
    content = stream.getvalue()
    if header is None:
        return content
    length = int.from_bytes(content[8:10], "little")
    return content[:10] + header.ljust(length - 1).encode() + b"\n" + content[10 + length :]


def encrypted(content: bytes) -> bytes:
    """With the flag of an encrypted member set, in its own header and in the directory."""
    changed = bytearray(content)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed[changed.index(signature) + flags] |= 1
    return bytes(changed)


def archive(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file, warnings.catch_warnings(action="ignore"):  # of two members of one name
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def bomb(inflated: int) -> bytes:
    """A member that says it has so many bytes, as one of zeros would."""
    changed = bytearray(archive(("a.npy", npy())))
    at = changed.index(b"PK\x01\x02") + 24
    changed[at : at + 4] = inflated.to_bytes(4, "little")
    return bytes(changed)


HUGE = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (192000000000000,), }")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .npz"),
        (b"nothing of the kind", "not a readable .npz"),
        (archive(("a.npy", npy()))[:-30], "not a readable .npz"),
        (encrypted(archive(("a.npy", npy()))), "is encrypted"),
        (archive(("a.npy", HUGE)), "Unable to allocate"),
        (bomb(1 << 31), "expected arrays of at most 1,073,741,824 bytes, got 2,147,483,648; write several files, or uncompressed"),
        (archive(("a", npy()[7:])), "got 'a' (no NAME.npy)"),
        (archive(("a.npy", npy()), ("a.npy", npy())), "expected one array of each name, got two of 'a'"),
        (archive(("a.npy", npy()), ("a", npy())), "expected one array of each name, got two of 'a'"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BadFile, match=re.escape(message)) as refused:
        read_npz(tmp_path / "x.npz")
    assert str(refused.value).startswith(f"{tmp_path / 'x.npz'}: ")
    assert "\n" not in str(refused.value)


def test_only_what_is_wanted_is_read(tmp_path: Path):
    (tmp_path / "x.npz").write_bytes(archive(("a.npy", npy()), ("b.npy", HUGE)))
    found = read_npz(tmp_path / "x.npz", "a".__eq__)
    np.testing.assert_array_equal(found.pop("a"), np.arange(3))
    assert not found
