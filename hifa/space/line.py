"""Queue of runs: one run works at a time, in order of arrival.

Gradio's own queue neither reports positions nor lets a waiting run be stopped.
"""

import contextlib
import threading
from collections.abc import Iterator


class Line:
    """Queue of run ids in order of arrival. The first run works, the other runs wait."""

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
        """Return the number of runs ahead in the queue; 0 for the working run and for a run that is not queued."""
        with self._lock:
            return self._ids.index(run_id) if run_id in self._ids else 0


def place_text(before: int) -> str:
    """Return the message for a waiting run with `before` runs ahead of it."""
    return f"Waiting in line: {before} {'run' if before == 1 else 'runs'} before this one."
