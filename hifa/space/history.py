"""The runs of one browser: their ids lie in its own storage, the runs themselves in the store."""

import html
import time
from dataclasses import dataclass
from typing import Any

from .store import RunFolder, RunStore, UnknownRunError
from .timings import clock
from .worker import current


STORAGE_KEY = "hifa-runs"
# Only keeps the browser's copy readable after a restart; it is no secret from its owner, and the ids are unguessable.
SECRET = "hifa-history-1"
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


def remember(history: Any, run_id: str) -> list[str]:
    """The ids with this one in front."""
    return [run_id, *(known for known in clean(history) if known != run_id)][:LONGEST]


def clean(history: Any) -> list[str]:
    """A browser's storage may hold anything."""
    return [run_id for run_id in history if isinstance(run_id, str)][:LONGEST] if isinstance(history, list) else []


def entries(store: RunStore, history: Any) -> list[Entry]:
    """The runs that are still there, the newest first."""
    found = []
    for run_id in clean(history):
        try:
            folder = store.open(run_id)
            record = current(folder, folder.read(), held=False)
        except UnknownRunError:
            continue
        title = record.request.prompt or {"image": "from a picture"}.get(record.request.kind, record.request.kind)
        step = f"{record.step:,}/{record.steps:,}" if record.steps else record.status
        label = f"{title} · {step} · {clock(max(0.0, time.time() - record.created))} ago"
        found.append(Entry(folder, label, folder.previews().get("colour", "")))
    return found


def history_html(store: RunStore, history: Any) -> str:
    """The list, each run with its address."""
    found = entries(store, history)
    if not found:
        return "<p class='hint'>Nothing yet. What you make is listed here, in this browser only.</p>"
    rows = "".join(
        f"<li><a href='?run={entry.run.id}'>"
        + (f"<img src='{entry.thumbnail}' alt='' width='48' height='48'>" if entry.thumbnail else "<span></span>")
        + f"{html.escape(entry.label)}</a></li>"
        for entry in found
    )
    return f"<ul class='runs'>{rows}</ul>"
