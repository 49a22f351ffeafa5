"""Handling of Ctrl-C that lets the current step finish."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Ctrl-C that is raised after the current step is finished and the run is saved."""


class Interrupt:
    """Flag that is set by the first Ctrl-C."""

    noted = False


@contextmanager
def first_noted() -> Iterator[Interrupt]:
    """Record the first Ctrl-C instead of raising, so that a step is not interrupted.

    The second Ctrl-C has its usual effect. Outside the main thread, which alone receives signals, nothing changes.

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
