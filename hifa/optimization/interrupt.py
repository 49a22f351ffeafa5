"""Handling of Ctrl-C that lets the current step finish."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Error for Ctrl-C, raised when the current step is finished and the run is saved."""


class Interrupt:
    """Flag that is set by the first Ctrl-C."""

    noted = False


@contextmanager
def first_noted() -> Iterator[Interrupt]:
    """Record the first Ctrl-C instead of raising, so that a step is not interrupted.

    The second Ctrl-C has its usual effect. Only the main thread receives signals. In any other thread, this
    function has no effect.

    Yields:
        The flag for the first Ctrl-C.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(*_) -> None:
        interrupt.noted = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
