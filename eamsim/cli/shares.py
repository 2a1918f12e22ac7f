"""Shares on the command line: `0.2` and `20%` are one share, whatever command asks for it."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from eamsim.errors import UserError


def parse_share(text: str, option: str, of: str = "the attention weights") -> float:
    """`20%` or `0.2` as a fraction in [0, 1], the nearest to the decimals; UserError for what is neither, such as `20`."""
    share = decimal_share(text)
    if not 0 <= share <= 1:
        raise UserError(f"{option}: expected a share of {of} such as 10% or 0.1, got {text!r}")
    return float(share)


def decimal_share(text: str) -> Decimal:
    """`20%` or `0.2` as it is written, exact; -1 for what is no number."""
    number = text.removesuffix("%")
    return _decimal(number) if number == text else _decimal(number) / 100


def _decimal(text: str) -> Decimal:
    """-1 for what is no finite number."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return Decimal(-1)
    return number if number.is_finite() else Decimal(-1)


def parse_shares(text: str, option: str) -> list[float]:
    """The shares in a list with commas between; UserError where one is none."""
    shares = [decimal_share(part) for part in text.split(",")]
    if not all(0 <= share <= 1 for share in shares):
        raise UserError(f"{option}: expected shares with commas between, such as 0,10%,0.5, got {text!r}")
    return [float(share) for share in shares]


def parse_points(text: str, option: str) -> float:
    """`0.5` or `0.5%`, points of top-1, as a fraction; UserError unless they are 0 to 100."""
    points = _decimal(text.removesuffix("%")) / 100
    if not 0 <= points <= 1:
        raise UserError(f"{option}: expected 0 to 100 points of top-1 such as 0.5 or 0.5%, got {text!r}")
    return float(points)


def share_of(option: str) -> Callable[[object], float]:
    """Parses this option of a command, and its default."""

    def share(value: object) -> float:
        return parse_share(str(value), option)

    return share


def points_of(option: str) -> Callable[[object], float]:
    """Parses this option of a command, and its default."""

    def points(value: object) -> float:
        return parse_points(str(value), option)

    return points
