"""The state of a run as the page and the API present it, in progress or idle."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .exports import existing, missing
from .gpu_lease import Progress
from .run_store import FAILED, FINISHED, PAUSED, RUNNING, STOPPED, WAITING, Record, RunFolder
from .step_times import clock
from .view_sheets import Sheets


@dataclass(frozen=True)
class RunStatus:
    """State of a run at one moment.

    Args:
        run_id: Id of the run; empty without a run.
        record: Record of the run; `None` without a run.
        text: Status line.
        share: Fraction of the work that is done, [0, 1].
        left: Estimated seconds left; `None` if unknown.
        previews: Preview pictures; see `snapshot`.
        files: Paths by kind; see `exports.existing`.
        views: Sheets with captions; see `Sheets.pictures`.
        working: Whether the run is waiting or in progress, so that it can be stopped.
        exporting: Whether the files of the run are being made, which can be postponed.
        making: Whether the mesh is being extracted again, which can be canceled.
        settled: Whether no work is in progress. Only then can the run be resumed.
        missing: Kinds of files that are missing or outdated and can be made.
    """

    run_id: str = ""
    record: Record | None = None
    text: str = ""
    share: float = 0.0
    left: float | None = None
    previews: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    views: tuple[tuple[Path, str], ...] = ()
    working: bool = False
    exporting: bool = False
    making: bool = False
    settled: bool = False
    missing: tuple[str, ...] = ()

    def status(self) -> dict[str, Any]:
        """Return the state as plain values for the API."""
        record = self.record
        if record is None:
            return {"run_id": "", "status": "none", "text": self.text}
        return {
            "run_id": self.run_id, "status": record.status, "text": self.text, "message": record.message,
            "step": record.step, "steps": record.steps, "loss": record.loss, "elapsed": round(record.seconds, 1),
            "left": None if self.left is None else round(self.left, 1), "seed": record.request.seed,
            "prior": record.request.prior, **record.metadata,
        }  # fmt: skip


def views_of(folder: RunFolder, record: Record) -> tuple[tuple[Path, str], ...]:
    """Return the sheets of a run with captions; empty for a run from a prompt."""
    return () if record.request.kind == "text" else tuple(Sheets(folder.path).pictures())


def progress(folder: RunFolder, record: Record, news: Progress) -> RunStatus:
    """Return the state of a run during a lease."""
    left = None if news.step_seconds is None else news.step_seconds * (news.steps - news.step)
    if not news.steps:
        share, views = news.share, views_of(folder, record)
        return RunStatus(folder.id, record, news.text, share, None, news.previews or {}, {}, views, working=True)
    text = f"Step {news.step:,} of {news.steps:,}"
    if news.loss is not None:
        text += f" · loss {news.loss:.3f} · {clock(news.seconds)}"
    if left is not None:
        text += f" · about {clock(left)} left"
    share, views = news.step / news.steps, views_of(folder, record)
    return RunStatus(folder.id, record, text, share, left, news.previews or {}, {}, views, working=True)


def waiting(folder: RunFolder, record: Record, text: str) -> RunStatus:
    """Return the state of a run in the queue."""
    views = views_of(folder, record)
    return RunStatus(folder.id, record, text, 0.0, None, folder.previews(), {}, views, working=True)


def shown(
    folder: RunFolder,
    record: Record,
    text: str = "",
    *,
    working: bool = False,
    exporting: bool = False,
    making: bool = False,
) -> RunStatus:
    """Return the state of a run that is not in a lease.

    Args:
        folder: Folder of the run.
        record: Record of the run.
        text: Current activity; empty for an idle run.
        working: See `RunStatus`.
        exporting: See `RunStatus`.
        making: See `RunStatus`.
    """
    share = record.step / record.steps if record.steps else float(record.status == FINISHED)
    return RunStatus(
        folder.id, record, text or done(record), share, None, folder.previews(), existing(folder, record),
        views_of(folder, record), working, exporting, making, not text, missing(folder, record),
    )  # fmt: skip


def done(record: Record) -> str:
    """Summarize the status of a run in one line."""
    step = f"step {record.step:,} of {record.steps:,}"
    head = {
        WAITING: "Waiting.",
        RUNNING: f"Running, at {step}." if record.steps else "Running.",
        PAUSED: f"Paused at {step}." if record.steps else "Paused before the first step.",
        STOPPED: f"Stopped at {step} after {clock(record.seconds)}." if record.steps else "Stopped.",
        FINISHED: f"Finished {record.steps:,} steps in {clock(record.seconds)}."
        if record.steps
        else "The views are made.",
        FAILED: "The run failed.",
    }[record.status]
    return " ".join(part for part in (head, record.message, record.problem) if part)
