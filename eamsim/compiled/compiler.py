"""Numba as eamsim uses it: started in an environment that it understands, its kernels kept between processes, its progress told."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from time import monotonic
from types import CodeType
from typing import Any

import numpy as np

from eamsim.compiled import kernel_cache
from eamsim.errors import UserError
from eamsim.progress import Progress

try:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Environment variable", RuntimeWarning)  # ignored with a traceback otherwise
        import llvmlite
        import numba
except (RuntimeWarning, RuntimeError, ValueError) as error:
    found = ", ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_"))
    raise UserError(f"Numba does not start: {str(error).splitlines()[0].rstrip('.')}; correct or unset what is set: {found}") from error

from numba import njit, prange, typeof
from numba.core import config, event
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps

__all__ = ["compile_kernel", "kept", "logged", "njit", "prange", "require_compiler", "sources_digest", "typeof"]

NOT_CODE = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY")
"""Variables of Numba that change no machine code."""
SILENCE_SECONDS = 2

log = logging.getLogger("eamsim.engine")


def require_compiler() -> None:
    """UserError where Numba was told not to compile: as Python the engine's kernels cannot run."""
    if config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue] (set at run time)
        raise UserError("the engine needs Numba's compiler, found NUMBA_DISABLE_JIT=1; unset it")


class Kept(NullCache):
    """Numba's cache of one function: a file for each of its signatures, by all that its machine code depends on."""

    def __init__(self, name: str, sources: Path):
        self._name, self._sources = name, sources

    @property
    def cache_path(self) -> str:
        return str(kernel_cache.folder().path)

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        target_context.refresh()
        content = kernel_cache.read(self._file(sig, target_context.codegen()))
        return None if content is None else CompileResult._rebuild(target_context, *pickle.loads(content))

    def save_overload(self, sig: Any, cres: Any) -> None:
        assert not cres.library.has_dynamic_globals  # addresses, which another process must not use
        kernel_cache.write(self._file(sig, cres.codegen), dumps(cres._reduce()))

    def _file(self, sig: Any, codegen: Any) -> str:
        versions = (numba.__version__, llvmlite.__version__, np.__version__, platform.python_implementation(), platform.python_version())
        options = sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_") and name not in NOT_CODE)
        key = repr((versions, options, codegen.magic_tuple(), sources_digest(self._sources), self._name, str(sig)))
        return f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()}.kernel"


def kept(sources: str | Path) -> Any:
    """Decorates a function of `njit`: its machine code is kept as long as the sources do not change, a file or a folder with all below."""

    def keep(kernel: Any) -> Any:
        if isinstance(kernel, Dispatcher):  # not with NUMBA_DISABLE_JIT
            kernel._cache = Kept(kernel.py_func.__qualname__, Path(sources))  # pyright: ignore[reportAttributeAccessIssue]
        return kernel

    return keep


@cache
def sources_digest(sources: Path) -> str:
    """SHA-256 of a source file, or of all below a folder."""
    files = sorted(sources.rglob("*.py")) if sources.is_dir() else [sources]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def compile_kernel(kernel: Any, signature: tuple[Any, ...], what: str, progress: Progress) -> None:
    """Compile a kept function for arguments of these types, or load its machine code, unless that is done; only a compilation is told.

    what: the variant, for the reader. An interrupt ends it after the step of LLVM that runs, at most some seconds.
    """
    if signature in kernel.overloads:
        return
    with ExitStack() as shown:

        def start(functions: int) -> Callable[[int], None]:
            path, is_temporary = kernel_cache.folder()
            where = "at every start" if is_temporary else f"once for this machine and version, kept in {path}"
            log.warning("compiling the integer kernels (%s): a minute or so, %s", what, where)
            return shown.enter_context(progress("functions compiled", functions))

        listener = Compilations(functions_of(kernel), start)
        with event.install_listener("numba:compile", listener):
            kernel.compile(signature)
        listener.finish()


class Compilations(event.Listener):
    """Counts functions, each once, when Numba has compiled them; starts to at the first, so not at all if the machine code was kept."""

    def __init__(self, functions: set[Any], start: Callable[[int], Callable[[int], None]]):
        self._missing, self._start = functions, start
        self._advance: Callable[[int], None] | None = None

    def on_start(self, event: Any) -> None:
        if self._advance is None and event.data["dispatcher"] in self._missing:
            self._advance = self._start(len(self._missing))

    def on_end(self, event: Any) -> None:
        if self._advance is not None and event.data["dispatcher"] in self._missing:
            self._missing.remove(event.data["dispatcher"])
            self._advance(1)

    def finish(self) -> None:
        """Those that another kernel had compiled before."""
        if self._advance is not None and self._missing:
            self._advance(len(self._missing))


def functions_of(kernel: Any) -> set[Any]:
    """The function and all that it calls by name, directly or not, as far as they are functions of `njit`."""
    known, waiting = {kernel}, [kernel]
    while waiting:
        function = waiting.pop().py_func
        called = (function.__globals__.get(name) for name in names_in(function.__code__))
        new = {each for each in called if isinstance(each, Dispatcher)} - known
        known |= new
        waiting += new
    return known


def names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_in(inner)


@contextmanager
def logged(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress as lines of the logger `eamsim.engine`, level INFO, SILENCE_SECONDS apart and at the end."""
    done, told = 0, monotonic()

    def advance(steps: int) -> None:
        nonlocal done, told
        done += steps
        if done == total or monotonic() - told >= SILENCE_SECONDS:
            told = monotonic()
            log.info("%s: %d/%d", what, done, total)

    yield advance
