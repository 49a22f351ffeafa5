"""Blocking calls inside generators: the call runs in a background thread while the generator keeps yielding.

Closing the generator cancels the call.
"""

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar


T = TypeVar("T")
M = TypeVar("M")
SECONDS = 0.25  # polling interval


class Cancelled(Exception):
    """The call was canceled, because its result is no longer needed."""


def run_in_thread(work: Callable[[threading.Event], T], seconds: float = SECONDS) -> Generator[None, None, T]:
    """Run `work` in a background thread and yield until it ends.

    Closing this generator cancels the call: the generator sets the event that `work` received, and returns without
    waiting for `work`. `work` should check the event, see `until_given_up`. The result of `work` is then discarded.

    Args:
        work: Function to call. Its argument is the event that is set on cancellation.
        seconds: Polling interval, in seconds.

    Yields:
        `None` after each polling interval.

    Returns:
        The return value of `work`.

    Raises:
        Exception: Any exception that `work` raises.
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
    """Run `work` in a background thread and yield progress messages with the elapsed time.

    Args:
        text: Description of the work.
        work: See `run_in_thread`.
        message: Function that converts a text to the message to yield.

    Yields:
        First `message(text)`, then messages of the text with the elapsed time.

    Returns:
        The return value of `work`.
    """
    began = time.monotonic()
    yield message(text)
    with contextlib.closing(run_in_thread(work)) as call:
        while True:
            try:
                next(call)
            except StopIteration as end:
                return end.value
            if seconds := halves(time.monotonic() - began):
                yield message(f"{text}, {seconds}")


def halves(seconds: float) -> str:
    """Format a duration in steps of 0.5 s; empty below 0.5 s.

    With steps of 1 s, the message could stay the same for more than a second.
    """
    return f"{int(2 * seconds) / 2:.1f} s" if seconds >= 0.5 else ""


def until_given_up(function: Callable[..., T], given_up: threading.Event) -> Callable[..., T]:
    """Wrap `function` so that calls raise `Cancelled` once `given_up` is set."""

    def watched(*arguments: Any) -> T:
        if given_up.is_set():
            raise Cancelled
        return function(*arguments)

    return watched
