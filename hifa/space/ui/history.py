"""Run history of each browser.

The browser stores an unguessable name, and the server stores the list of runs for that name. If the browser stored the
list itself, two open windows would overwrite each other's list.
"""

import html
import json
import logging
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from ...storage.checkpoint import write_text_atomically
from ..jobs.run_store import ID, RunFolder, RunStore, UnknownRunError
from ..jobs.step_times import clock
from ..jobs.worker import current


# JavaScript that returns the name of the browser, which all of its windows share. The first window creates the name.
# The result is empty if the browser blocks local storage.
NAME_OF_BROWSER = """() => {
  try {
    let name = localStorage.getItem('hifa-visitor');
    if (!name) {
      const bytes = crypto.getRandomValues(new Uint8Array(16));
      name = btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
      localStorage.setItem('hifa-visitor', name);
    }
    return name;
  } catch { return ''; }
}"""
FOLDER = "visitors"  # in the folder of the runs
LONGEST = 30
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Entry of a run history.

    Args:
        run: Folder of the run.
        label: Prompt, step and age of the run.
        thumbnail: Last preview as a data URI; empty if there is none.
    """

    run: RunFolder
    label: str
    thumbnail: str


class History:
    """Run histories of all browsers.

    Args:
        store: Store of the runs. Only one server may use the store, because two servers would overwrite each other's
            lists.
    """

    def __init__(self, store: RunStore):
        self.store, self.folder, self._writing = store, store.root / FOLDER, threading.Lock()

    def name(self, visitor: Any) -> str:
        """Return the name of a browser if the name is valid, a new name otherwise.

        Args:
            visitor: Value from the browser's local storage, which is untrusted.
        """
        return visitor if isinstance(visitor, str) and ID.fullmatch(visitor) else secrets.token_urlsafe(16)

    def runs(self, visitor: Any) -> list[str]:
        """Return the ids of a browser's runs, newest first. The ids of deleted runs are included."""
        try:
            known = json.loads((self.folder / self.name(visitor)).read_text("utf-8"))
        except (OSError, ValueError):
            return []
        return [run_id for run_id in known if isinstance(run_id, str)] if isinstance(known, list) else []

    def remember(self, visitor: Any, run_id: str) -> str:
        """Add a run to the front of a browser's list.

        If the list cannot be written, a warning is logged and the run continues.

        Args:
            visitor: Name of the browser, untrusted.
            run_id: Id of the run.

        Returns:
            The name of the browser, see `name`.
        """
        name = self.name(visitor)
        try:
            with self._writing:
                self.folder.mkdir(mode=0o700, exist_ok=True)
                ids = [run_id, *(known for known in self.runs(name) if known != run_id)]
                write_text_atomically(self.folder / name, json.dumps(ids[:LONGEST]))
                self._forget()
        except OSError:
            logger.warning("Cannot write the run history of a visitor", exc_info=True)
        return name

    def _forget(self) -> None:
        """Delete lists that are older than the store's `max_age` and contain only deleted runs."""
        for path in self.folder.iterdir():
            old = time.time() - path.stat().st_mtime > self.store.max_age
            if old and not any((self.store.root / run_id).is_dir() for run_id in self.runs(path.name)):
                path.unlink()

    def entries(self, visitor: Any) -> list[Entry]:
        """Return the existing runs of a browser, newest first."""
        found = []
        for run_id in self.runs(visitor):
            try:
                folder = self.store.open(run_id)
                record = current(folder, folder.read(), held=False)
            except UnknownRunError:
                continue
            title = "views of a picture" if record.request.views_only else record.request.prompt or "from a picture"
            step = f"{record.step:,}/{record.steps:,}" if record.steps else record.status
            label = f"{title} · {step} · {clock(max(0.0, time.time() - record.created))} ago"
            found.append(Entry(folder, label, folder.previews().get("color", "")))
        return found

    def html(self, visitor: Any) -> str:
        """Return the history of a browser as an HTML list of links."""
        found = self.entries(visitor)
        if not found:
            return "<p class='hint'>Nothing yet. What you make is listed here, for this browser only.</p>"
        rows = "".join(
            f"<li><a href='?run={entry.run.id}'>"
            + (f"<img src='{entry.thumbnail}' alt='' width='48' height='48'>" if entry.thumbnail else "<span></span>")
            + f"{html.escape(entry.label)}</a></li>"
            for entry in found
        )
        return f"<ul class='runs'>{rows}</ul>"
