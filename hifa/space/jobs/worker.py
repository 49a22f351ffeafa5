"""Execution of runs in the server process: consecutive leases, then the export of the files."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import replace

from ...export import EmptyFieldError
from ...storage.run_folder import read_metadata
from . import exports as files
from . import gpu_lease as lease
from .errors import explain
from .exports import MeshOptions
from .gpu_lease import Lease, LeaseTask, Progress, lease_seconds
from .memory import give_back
from .queue import RunQueue, place_text
from .run_store import FAILED, FINISHED, PAUSED, RUNNING, STOPPED, WAITING, Record, RunFolder, RunStore
from .status import RunStatus, done, progress, shown, waiting
from .step_times import ShareClock, Timings, work_key
from .view_sheets import Sheets


WAIT_SECONDS = 0.25  # between checks of the queue; also the largest delay of Stop
REMAKE_PATIENCE = 3.0  # seconds to wait for the lock; a canceled extraction releases the lock sooner


class Worker:
    """Executor of the runs of a store.

    Args:
        store: Store of the runs.
        lease: Function that executes a lease; see `gpu_lease.make_lease`. On ZeroGPU, the function is wrapped in
            `spaces.GPU`.
        limited: Whether leases have a time limit. If so, a new lease continues the run.
        timings: Store for the measured times.
        export_in_turn: Whether the next run in the queue also waits for the export of the previous run. This is useful
            on a machine without a GPU, where both would be slow in parallel.
    """

    def __init__(self, store: RunStore, lease: Lease, limited: bool, timings: Timings, export_in_turn: bool = True):
        self.store, self.lease, self.limited, self.timings = store, lease, limited, timings
        self.export_in_turn = export_in_turn
        self.line = RunQueue()

    def advance(self, folder: RunFolder) -> Iterator[RunStatus]:
        """Wait in the queue, optimize until the run is finished, stopped or paused, then export the files.

        No work is lost. If the caller closes the generator, an error occurs or a lease ends, the run can be resumed.
        Missing files are made by `make_files`, or when a finished run is advanced again.

        Raises:
            BusyRunError, UnknownRunError: See `RunFolder.locked`.
        """
        with folder.locked():
            record = current(folder, folder.read(), held=True)
            if record.status == FINISHED:
                yield from self._export(folder, record)
                return
            with self.line.joined(folder.id):
                record = folder.write(record, status=WAITING, message="")
                while (before := self.line.before(folder.id)) and not folder.stop_requested:
                    yield waiting(folder, record, place_text(before))
                    time.sleep(WAIT_SECONDS)
                record = yield from self._optimize(folder, record)
                if self.export_in_turn:
                    yield from self._end(folder, record)
            if not self.export_in_turn:
                yield from self._end(folder, record)

    def _end(self, folder: RunFolder, record: Record) -> Iterator[RunStatus]:
        if record.status in (STOPPED, FINISHED):
            yield from self._export(folder, record)
        else:
            yield shown(folder, record)

    def _optimize(self, folder: RunFolder, record: Record) -> Generator[RunStatus, None, Record]:
        """Execute the leases of a run, and return the record with the outcome."""
        record = folder.write(record, status=RUNNING)
        try:
            with contextlib.closing(self._leases(folder, record)) as stream:
                for record, news in stream:
                    yield progress(folder, record, news)
        except GeneratorExit:
            left = folder.read()
            if left.status == RUNNING:
                folder.write(
                    _with_saved_step(folder, left),
                    status=PAUSED,
                    message="The browser window was closed. Select Resume to continue.",
                )
            raise
        return record

    def _leases(self, folder: RunFolder, record: Record) -> Generator[tuple[Record, Progress], None, None]:
        """Execute leases until no further lease is needed. The last record contains the reason."""
        if folder.stop_requested:
            message = "" if folder.started else "Stopped before the first step."
            yield folder.write(record, status=STOPPED, message=message), Progress(end=STOPPED)
            return
        news, previews, setup = Progress(step=record.step, steps=record.steps), folder.previews(), 0.0
        first, optimizing = news.step, 0.0  # first step of this call, and seconds of its steps
        stuck = False
        while True:
            asked = None
            if self.limited:
                rest = lease_seconds(news.steps - news.step, news.step_seconds, setup)
                asked = lease.LONGEST_LEASE if stuck else rest
            before, began, setup = _reached(folder, news), time.monotonic(), None
            message = ""
            try:
                with contextlib.closing(self.lease(LeaseTask(str(folder.path), asked))) as stream:
                    for news in stream:
                        if setup is None and news.steps:
                            setup = time.monotonic() - began
                        previews = news.previews or previews
                        record = _taken_in(record, news)
                        if news.previews:  # other windows read the record
                            record = folder.write(record)
                        yield record, replace(news, previews=previews)
            except GeneratorExit:
                raise
            except Exception as error:  # exhausted quota, full queue or abort: pause the run
                message = explain(error)
            setup = setup or time.monotonic() - began
            optimizing += time.monotonic() - began - setup
            # Steps get longer because renders grow. The mean of a few first steps would underestimate the rest.
            if news.end and news.step - first > news.steps / 2:
                self.timings.note(key_of(record), optimizing / (news.step - first), setup)
            was_stuck, stuck = stuck, _reached(folder, news) == before
            ended = self._ended(folder, record, news, message, stuck and (was_stuck or news.steps > 0))
            if ended is not None:
                yield ended, replace(news, previews=previews)
                return

    def _ended(self, folder: RunFolder, record: Record, news: Progress, message: str, hopeless: bool) -> Record | None:
        """Write and return the final record of a run that needs no further lease; otherwise return `None`.

        Args:
            folder: Folder of the run.
            record: Record of the run.
            news: Last progress update of the lease.
            message: Error message of the lease; empty if there was no error.
            hopeless: Whether a further lease would make no progress either.
        """
        record = _with_saved_step(folder, record)
        if news.end == lease.FINISHED:
            return folder.write(record, status=FINISHED, message=news.text)
        if news.end == lease.STOPPED:
            return folder.write(record, status=STOPPED, message=news.text)
        if news.end == lease.FAILED:
            return folder.write(record, status=PAUSED if folder.started else FAILED, message=news.text)
        if message or news.end != lease.DEADLINE:
            message = message or "The GPU was released before the work was done. Select Resume to continue."
            return folder.write(record, status=PAUSED, message=message)
        if folder.stop_requested:
            return folder.write(record, status=STOPPED)
        if hopeless:
            what = "one step" if news.steps or record.request.kind == "text" else "the views of one seed"
            return folder.write(
                record, status=PAUSED, message=f"A GPU lease was too short for {what}. Select Resume to try again."
            )
        return None

    def make_files(self, folder: RunFolder) -> Iterator[RunStatus]:
        """Make the missing files of a run at its current step, and replace drafts by files in full quality.

        Raises:
            BusyRunError, UnknownRunError: See `RunFolder.locked`.
        """
        with folder.locked():
            yield from self._export(folder, current(folder, folder.read(), held=True), full=True)

    def _export(self, folder: RunFolder, record: Record, full: bool = False) -> Iterator[RunStatus]:
        """Make the missing files, unless the user postpones them. The caller holds the lock of the run.

        Args:
            folder: Folder of the run.
            record: Record of the run.
            full: Whether to make files in full quality even if the run is not finished.
        """
        full = full or record.status == FINISHED
        if files.to_make(folder, record, full):
            give_back()  # the memory of the optimization, which has ended
            record = folder.write(record, problem="")
            folder.want_files()
            try:
                clock = ShareClock()
                with contextlib.closing(files.make_missing(folder, record, full)) as made:
                    for text, record, share in made:
                        if text and folder.files_put_off:
                            record = folder.write(record, problem="Export canceled. The files can be made later.")
                            break
                        if text:
                            text = f"{done(record)} {text}{clock.left_text(share)} …"
                            yield replace(shown(folder, record, text, exporting=True), share=share)
            except Exception as error:  # the run is saved even if its export fails
                record = folder.write(record, problem=explain(error))
        yield shown(folder, record)

    def remake_mesh(self, folder: RunFolder, options: MeshOptions) -> Iterator[RunStatus]:
        """Extract the mesh of a run again with other options. If the generator is closed early, the old mesh is kept.

        Raises:
            BusyRunError, UnknownRunError: See `RunFolder.locked`.
            ValueError: If the run has not started, or if there is no surface yet.
        """
        with folder.locked(REMAKE_PATIENCE):
            record = current(folder, folder.read(), held=True)
            if not folder.started:
                raise ValueError("This run has not started yet, so it has no mesh. Generate an object first.")
            try:
                clock = ShareClock()
                for text, latest, share in files.make_mesh(folder, record, options):
                    left = clock.left_text(share)
                    state = shown(folder, latest, text and f"{text}{left} …", making=bool(text))
                    yield replace(state, share=share) if text else state
            except EmptyFieldError as error:
                raise ValueError("There is no surface yet. Resume the run, or start a run with more steps.") from error

    def look(self, folder: RunFolder) -> RunStatus:
        """Return the state of a run without changing the run, even while another window works on it."""
        if not folder.busy:
            return shown(folder, current(folder, folder.read(), held=False))
        record, before = folder.read(), self.line.before(folder.id)
        text = place_text(before) if before else "This run is in progress in another window …"
        return shown(folder, record, text, working=True)

    async def follow(self, folder: RunFolder, seconds: float = 1.0) -> AsyncIterator[RunStatus]:
        """Yield the state of a run until no work on the run is in progress. Waiting does not block a thread.

        Args:
            folder: Folder of the run.
            seconds: Seconds between two states.
        """
        while True:
            state = self.look(folder)
            yield state
            if state.settled:
                return
            await asyncio.sleep(seconds)


def current(folder: RunFolder, record: Record, held: bool) -> Record:
    """Return the corrected record of a run that is not in progress.

    If the record says that the run is waiting or running, the server was killed during the run.

    Args:
        folder: Folder of the run.
        record: Record as stored.
        held: Whether the caller holds the lock. If so, the corrected record is written.
    """
    if record.status not in (RUNNING, WAITING):
        return record
    if record.status == WAITING and not folder.started:
        changed = replace(record, message="The run lost its place in the queue. Select Resume to start it.")
    else:
        message = (
            "The server was restarted during the run. Select Resume to continue."
            if record.status == RUNNING
            else record.message
        )
        changed = replace(_with_saved_step(folder, record), status=PAUSED, message=message)
    return folder.write(changed) if held else changed


def _with_saved_step(folder: RunFolder, record: Record) -> Record:
    """Return the record with step, loss and time of the saved run, from which the run is resumed."""
    if not folder.started:
        return record
    saved = read_metadata(folder.run)
    return replace(
        record, step=saved["step"], steps=saved["config"]["num_inference_steps"], seconds=saved["seconds"],
        loss=saved["losses"][-1]["loss"] if saved["losses"] else None,
    )  # fmt: skip


def _reached(folder: RunFolder, news: Progress) -> tuple[int, int]:
    """Return the progress of a run: the number of generated sheets and the number of steps."""
    return len(Sheets(folder.path).scores()), news.step


def _taken_in(record: Record, news: Progress) -> Record:
    if not news.steps:
        return record
    return replace(record, step=news.step, steps=news.steps, loss=news.loss, seconds=news.seconds)


def key_of(record: Record) -> str:
    """Return the key of a run's measured times; see `work_key`."""
    request = record.request
    return work_key(request.kind, request.prior if request.prompt else "", request.settings)
