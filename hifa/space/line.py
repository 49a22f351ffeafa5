"""Who is next: one run works at a time, in the order of arrival. Gradio's own queue can neither tell a place nor let
somebody in it be stopped."""

import contextlib
import threading
from collections.abc import Iterator


class Line:
    """Ids of runs in the order in which they came; the first one works, the others wait."""

    def __init__(self):
        self._lock, self._ids = threading.Lock(), []

    @contextlib.contextmanager
    def joined(self, run_id: str) -> Iterator[None]:
        """Stand in line, at its end, until the block ends."""
        with self._lock:
            self._ids.append(run_id)
        try:
            yield
        finally:
            with self._lock:
                self._ids.remove(run_id)

    def before(self, run_id: str) -> int:
        """How many have to end before this one works; 0 for the one that works, and for one that is not in line."""
        with self._lock:
            return self._ids.index(run_id) if run_id in self._ids else 0


def place_text(before: int) -> str:
    """The place in line, for who waits there."""
    return f"Waiting in line: {before} {'run' if before == 1 else 'runs'} before this one."
