"""The runs of each browser. It keeps a name that nobody can guess, and the store which runs were made under it: lists
in the browser itself would overwrite each other where two of its windows are open."""

import contextlib
import html
import json
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..state import write_text_atomically
from .store import ID, RunFolder, RunStore, UnknownRunError
from .timings import clock
from .worker import current


STORAGE_KEY = "hifa-visitor"
# Only keeps the browser's copy readable after a restart; it is no secret from its owner, and names are unguessable.
SECRET = "hifa-history-1"
FOLDER = "visitors"  # beside the runs
LONGEST = 30


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
        store: Of the runs. A name that made none for as long as runs are kept is forgotten.
    """

    def __init__(self, store: RunStore):
        self.store, self.folder, self._writing = store, store.root / FOLDER, threading.Lock()

    def name(self, visitor: Any) -> str:
        """The name that a browser gave, or a new one: its storage may hold anything."""
        return visitor if isinstance(visitor, str) and ID.fullmatch(visitor) else secrets.token_urlsafe(16)

    def runs(self, visitor: Any) -> list[str]:
        """Ids, the newest first; of runs that are gone, too."""
        try:
            return json.loads((self.folder / self.name(visitor)).read_text())
        except (OSError, ValueError):
            return []

    def remember(self, visitor: Any, run_id: str) -> str:
        """Put a run in front; returns the name."""
        name = self.name(visitor)
        with self._writing:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            ids = [run_id, *(known for known in self.runs(name) if known != run_id)]
            write_text_atomically(self.folder / name, json.dumps(ids[:LONGEST]))
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > self.store.max_age:
                        path.unlink()
        return name

    def entries(self, visitor: Any) -> list[Entry]:
        """The runs that are still there, the newest first."""
        found = []
        for run_id in self.runs(visitor):
            try:
                folder = self.store.open(run_id)
                record = current(folder, folder.read(), held=False)
            except UnknownRunError:
                continue
            title = record.request.prompt or {"image": "from a picture"}.get(record.request.kind, record.request.kind)
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
