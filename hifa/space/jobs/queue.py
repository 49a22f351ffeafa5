"""Queue of runs: one run is executed at a time, in order of arrival.

Gradio's own queue is not sufficient: a handler that waits there can neither report its position nor be stopped.
"""

import contextlib
import threading
from collections.abc import Iterator


class RunQueue:
    """Queue of run ids in order of arrival. The first run is executed, and the remaining runs wait."""

    def __init__(self):
        self._lock, self._ids = threading.Lock(), []

    @contextlib.contextmanager
    def joined(self, run_id: str) -> Iterator[None]:
        """Add a run to the end of the queue and remove it when the block ends."""
        with self._lock:
            self._ids.append(run_id)
        try:
            yield
        finally:
            with self._lock:
                self._ids.remove(run_id)

    def before(self, run_id: str) -> int:
        """Return the number of runs ahead in the queue; 0 for the current run and for a run that is not queued."""
        with self._lock:
            return self._ids.index(run_id) if run_id in self._ids else 0


def place_text(before: int) -> str:
    """Return the message for a waiting run with `before` runs ahead of it."""
    return f"Waiting in line: {before} {'run' if before == 1 else 'runs'} before this one."
