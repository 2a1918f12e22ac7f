"""How far long work is: what its caller passes to be told."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what, total) -> a context that yields `advance(steps)`."""
