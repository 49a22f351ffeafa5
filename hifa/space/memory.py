"""Memory of a server that lives long: what glibc would keep of runs that are over."""

import contextlib
import ctypes
import sys


M_ARENA_MAX = -8  # of mallopt, see malloc.h
ARENAS = 2


def limit_arenas() -> None:
    """Let threads share a few arenas. By default each may get its own, up to eight a core, and keeps what a run that
    passed through it once needed: with many visitors that is a gigabyte a minute at first.

    Call it before there are threads. Without glibc it does nothing.
    """
    _call("mallopt", M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return to the system what is free. Without glibc it does nothing."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl has neither
            getattr(ctypes.CDLL(None), name)(*arguments)
