"""The runs of each browser. It keeps a name that nobody can guess, and the store which runs were made under it: lists
in the browser itself would overwrite each other where two of its windows are open."""

import html
import json
import logging
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..state import write_text_atomically
from .store import ID, RunFolder, RunStore, UnknownRunError
from .timings import clock
from .worker import current


# The browser's side: one name in all of its windows, made by the one that asks first; none where it keeps nothing.
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
FOLDER = "visitors"  # beside the runs
LONGEST = 30
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A run in the list.

    Args:
        run: Its folder.
        label: Prompt, step and age.
        thumbnail: Data URI of its last look, or empty.
    """

    run: RunFolder
    label: str
    thumbnail: str


class History:
    """Of all browsers that made a run.

    Args:
        store: Of the runs, of one server: two would overwrite each other's lists.
    """

    def __init__(self, store: RunStore):
        self.store, self.folder, self._writing = store, store.root / FOLDER, threading.Lock()

    def name(self, visitor: Any) -> str:
        """The name that a browser gave, or a new one: its storage may hold anything."""
        return visitor if isinstance(visitor, str) and ID.fullmatch(visitor) else secrets.token_urlsafe(16)

    def runs(self, visitor: Any) -> list[str]:
        """Ids, the newest first; of runs that are gone, too."""
        try:
            known = json.loads((self.folder / self.name(visitor)).read_text())
        except (OSError, ValueError):
            return []
        return [run_id for run_id in known if isinstance(run_id, str)] if isinstance(known, list) else []

    def remember(self, visitor: Any, run_id: str) -> str:
        """Put a run in front; returns the name. A list that cannot be written must not keep anybody from a run."""
        name = self.name(visitor)
        try:
            with self._writing:
                self.folder.mkdir(mode=0o700, exist_ok=True)
                ids = [run_id, *(known for known in self.runs(name) if known != run_id)]
                write_text_atomically(self.folder / name, json.dumps(ids[:LONGEST]))
                self._forget()
        except OSError:
            logger.warning("the list of a visitor's runs cannot be written", exc_info=True)
        return name

    def _forget(self) -> None:
        """Delete the lists that are old and whose runs are gone."""
        for path in self.folder.iterdir():
            old = time.time() - path.stat().st_mtime > self.store.max_age
            if old and not any((self.store.root / run_id).is_dir() for run_id in self.runs(path.name)):
                path.unlink()

    def entries(self, visitor: Any) -> list[Entry]:
        """The runs that are still there, the newest first."""
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
            found.append(Entry(folder, label, folder.previews().get("colour", "")))
        return found

    def html(self, visitor: Any) -> str:
        """The list, each run with its address."""
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
