"""A long call beside a generator: it goes on yielding meanwhile, and when its reader goes away the call is told."""

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar


T, M = TypeVar("T"), TypeVar("M")
SECONDS = 0.25  # between looks at the call


class GivenUpError(Exception):
    """Nobody waits for the result any more."""


def beside(work: Callable[[threading.Event], T], seconds: float = SECONDS) -> Generator[None, None, T]:
    """Do `work` in a thread of its own, yielding while it takes; returns what it returns and raises what it raises.

    When this generator is closed it does not wait: the event that `work` was given is set, and what `work` still does
    until it looks at that, see `until_given_up`, is thrown away.
    """
    given_up = threading.Event()
    thread = concurrent.futures.ThreadPoolExecutor(1)
    call = thread.submit(work, given_up)
    try:
        while not concurrent.futures.wait([call], seconds).done:
            yield
        return call.result()
    finally:
        given_up.set()
        thread.shutdown(wait=False)


def saying(text: str, work: Callable[[threading.Event], T], message: Callable[[str], M]) -> Generator[M, None, T]:
    """`work` beside messages of what goes on, and for how many seconds; returns what comes out of it."""
    began = time.monotonic()
    yield message(text)
    with contextlib.closing(beside(work)) as call:
        while True:
            try:
                next(call)
            except StopIteration as end:
                return end.value
            if seconds := halves(time.monotonic() - began):
                yield message(f"{text}, {seconds}")


def halves(seconds: float) -> str:
    """By half seconds: with whole ones, a second and a bit would pass without anything new. Nothing at first."""
    return f"{int(2 * seconds) / 2:.1f} s" if seconds >= 0.5 else ""


def until_given_up(function: Callable[..., T], given_up: threading.Event) -> Callable[..., T]:
    """`function`, which raises `GivenUpError` from then on."""

    def watched(*arguments: Any) -> T:
        if given_up.is_set():
            raise GivenUpError
        return function(*arguments)

    return watched
