"""How far long work is: what its caller passes to be told."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""(what, total) -> a context that yields `advance(steps)`."""


def unheard(steps: int) -> None:
    """An `advance` that tells nobody."""


@contextmanager
def silent(what: str, total: int) -> Iterator[Advance]:
    """A Progress that tells nobody."""
    yield unheard
