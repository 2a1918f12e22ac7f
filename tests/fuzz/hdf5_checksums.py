"""Gives the superblock and the object headers of an HDF5 file the checksums of what they hold: what a forger would do."""

import struct

MASK = 0xFFFFFFFF
SUPERBLOCK_BYTES = 48


def renew(content: bytearray) -> None:
    """In place; headers whose length leads out of the file are left alone."""
    _store(content, 0, SUPERBLOCK_BYTES - 4)
    start = content.find(b"OHDR")
    while start >= 0:
        if (length := _header_bytes(content, start)) and start + length + 4 <= len(content):
            _store(content, start, length)
        start = content.find(b"OHDR", start + 4)


def _store(content: bytearray, start: int, length: int) -> None:
    if start + length + 4 <= len(content):
        struct.pack_into("<I", content, start + length, lookup3(bytes(content[start : start + length])))


def _header_bytes(content: bytearray, start: int) -> int:
    flags = content[start + 5] if start + 5 < len(content) else 0
    at, width = start + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10), 1 << (flags & 3)
    return at - start + width + int.from_bytes(content[at : at + width], "little")


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & MASK


def lookup3(key: bytes) -> int:
    """Bob Jenkins' hash of little-endian words, which HDF5 takes for its metadata."""
    a = b = c = (0xDEADBEEF + len(key)) & MASK
    while len(key) > 12:
        one, two, three = struct.unpack("<III", key[:12])
        a, b, c, key = (a + one) & MASK, (b + two) & MASK, (c + three) & MASK, key[12:]
        a = (a - c & MASK) ^ _rotated(c, 4)
        c = c + b & MASK
        b = (b - a & MASK) ^ _rotated(a, 6)
        a = a + c & MASK
        c = (c - b & MASK) ^ _rotated(b, 8)
        b = b + a & MASK
        a = (a - c & MASK) ^ _rotated(c, 16)
        c = c + b & MASK
        b = (b - a & MASK) ^ _rotated(a, 19)
        a = a + c & MASK
        c = (c - b & MASK) ^ _rotated(b, 4)
        b = b + a & MASK
    if not key:
        return c
    one, two, three = struct.unpack("<III", key.ljust(12, b"\0"))
    a, b, c = (a + one) & MASK, (b + two) & MASK, (c + three) & MASK
    for turn, bits in enumerate((14, 11, 25, 16, 4, 14, 24)):
        match turn % 3:
            case 0:
                c = ((c ^ b) - _rotated(b, bits)) & MASK
            case 1:
                a = ((a ^ c) - _rotated(c, bits)) & MASK
            case _:
                b = ((b ^ a) - _rotated(a, bits)) & MASK
    return c
