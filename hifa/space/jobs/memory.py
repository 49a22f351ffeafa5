"""Memory of a long-running server: limits for the memory that glibc retains after runs have ended."""

import contextlib
import ctypes
import sys


M_ARENA_MAX = -8  # parameter of mallopt, see malloc.h
ARENAS = 2


def limit_arenas() -> None:
    """Limit glibc to `ARENAS` malloc arenas, which all threads share.

    By default each thread may get its own arena, up to eight arenas per core. An arena retains the memory that a run
    once needed. With many visitors, memory would initially grow by 1 GB per minute.

    Call this function before any thread is started. Without glibc it has no effect.
    """
    _call("mallopt", M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return free heap memory to the operating system. Without glibc this function has no effect."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl has neither function
            getattr(ctypes.CDLL(None), name)(*arguments)
