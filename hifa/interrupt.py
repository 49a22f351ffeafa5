"""Ctrl-C that waits for a safe moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the step at hand was finished and the run saved."""


class Interrupt:
    """Whether there was a Ctrl-C."""

    noted = False


@contextmanager
def first_noted() -> Iterator[Interrupt]:
    """The first Ctrl-C is only noted, so that it does not cut a step in two; the second one is as ever.

    Outside of the main thread, which alone gets signals, nothing changes.
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
