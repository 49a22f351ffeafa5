"""From a waiting run to a finished one: leases one after the other, then the files. Runs in the server's process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import replace

from ..export import EmptyFieldError
from ..saved import read_facts
from . import files, lease
from .errors import explain
from .files import MeshOptions
from .lease import Lease, LeaseTask, News, lease_seconds
from .line import Line, place_text
from .memory import give_back
from .sheets import Sheets
from .shown import Shown, done, progress, shown, waiting
from .store import FAILED, FINISHED, PAUSED, RUNNING, STOPPED, WAITING, Record, RunFolder, RunStore
from .timings import Timings, work_key


WAIT_SECONDS = 0.25  # between looks at the line: so soon Stop is seen
REMAKE_PATIENCE = 3.0  # seconds; one that was cancelled lets go before


class Worker:
    """Does what the runs of a store ask for.

    Args:
        store: Of the runs.
        lease: See `lease.make_lease`; on ZeroGPU wrapped in `spaces.GPU`.
        limited: Leases end by themselves, and another one goes on.
        timings: Take in what is measured.
        export_in_turn: The next run in line waits for the files of the one before, too: both would be slow where there
            is but a CPU for everything.
    """

    def __init__(self, store: RunStore, lease: Lease, limited: bool, timings: Timings, export_in_turn: bool = True):
        self.store, self.lease, self.limited, self.timings = store, lease, limited, timings
        self.export_in_turn = export_in_turn
        self.line = Line()

    def advance(self, folder: RunFolder) -> Iterator[Shown]:
        """Wait in line, work until the run is finished, stopped or paused, then make its files. Nothing that is done
        gets lost: a reader that goes away, an error and the end of a lease leave a run that can be continued, and
        files that were not made are made when a finished run is advanced again, or by `make_files`.

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
                record = yield from self._optimise(folder, record)
                if self.export_in_turn:
                    yield from self._end(folder, record)
            if not self.export_in_turn:
                yield from self._end(folder, record)

    def _end(self, folder: RunFolder, record: Record) -> Iterator[Shown]:
        if record.status in (STOPPED, FINISHED):
            yield from self._export(folder, record)
        else:
            yield shown(folder, record)

    def _optimise(self, folder: RunFolder, record: Record) -> Generator[Shown, None, Record]:
        """Work as long as it is of use; returns the record, which says what the end was."""
        record = folder.write(record, status=RUNNING)
        try:
            with contextlib.closing(self._leases(folder, record)) as stream:
                for record, news in stream:
                    yield progress(folder, record, news)
        except GeneratorExit:
            left = folder.read()
            if left.status == RUNNING:
                folder.write(_with_saved_step(folder, left), status=PAUSED, message="Its window was closed.")
            raise
        return record

    def _leases(self, folder: RunFolder, record: Record) -> Iterator[tuple[Record, News]]:
        """Leases until one says that it is no use to go on; the last record says why."""
        if folder.stop_requested:
            message = "" if folder.started else "Stopped before the first step."
            yield folder.write(record, status=STOPPED, message=message), News(end=STOPPED)
            return
        news, previews, setup = News(step=record.step, steps=record.steps), folder.previews(), 0.0
        first, optimising = news.step, 0.0  # where this began, and the seconds that its steps took
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
                        if news.previews:  # for whoever looks on
                            record = folder.write(record)
                        yield record, replace(news, previews=previews)
            except GeneratorExit:
                raise
            except Exception as error:  # quota, queue, abort: all mean a pause
                message = explain(error)
            setup = setup or time.monotonic() - began
            optimising += time.monotonic() - began - setup
            # The first steps of a run are short, for its renders grow: a few of them say nothing of the rest.
            if news.end and news.step - first > news.steps / 2:
                self.timings.note(key_of(record), optimising / (news.step - first), setup)
            was_stuck, stuck = stuck, _reached(folder, news) == before
            ended = self._ended(folder, record, news, message, stuck and (was_stuck or news.steps > 0))
            if ended is not None:
                yield ended, replace(news, previews=previews)
                return

    def _ended(self, folder: RunFolder, record: Record, news: News, message: str, hopeless: bool) -> Record | None:
        """The record of a run that needs no other lease, or `None` if it does.

        Args:
            hopeless: The next lease would come no further either.
        """
        record = _with_saved_step(folder, record)
        if news.end == lease.FINISHED:
            return folder.write(record, status=FINISHED, message=news.text)
        if news.end == lease.STOPPED:
            return folder.write(record, status=STOPPED, message=news.text)
        if news.end == lease.FAILED:
            return folder.write(record, status=PAUSED if folder.started else FAILED, message=news.text)
        if message or news.end != lease.DEADLINE:
            message = message or "The GPU was given back before the work was done. Resume goes on."
            return folder.write(record, status=PAUSED, message=message)
        if folder.stop_requested:
            return folder.write(record, status=STOPPED)
        if hopeless:
            what = "one step" if news.steps or record.request.kind == "text" else "the views of one seed"
            return folder.write(
                record, status=PAUSED, message=f"A lease was too short for {what}. Resume tries again."
            )
        return None

    def make_files(self, folder: RunFolder) -> Iterator[Shown]:
        """Make the files of a run that are missing, as far as it is, and all of which there are but drafts.

        Raises:
            BusyRunError, UnknownRunError: See `RunFolder.locked`.
        """
        with folder.locked():
            yield from self._export(folder, current(folder, folder.read(), held=True), full=True)

    def _export(self, folder: RunFolder, record: Record, full: bool = False) -> Iterator[Shown]:
        """Make what is missing, until that is put off; the caller holds the run.

        Args:
            full: Of a run that has not finished, too.
        """
        full = full or record.status == FINISHED
        if files.to_make(folder, record, full):
            give_back()  # of the optimisation, which is over
            record = folder.write(record, problem="")
            folder.want_files()
            try:
                with contextlib.closing(files.make_missing(folder, record, full)) as made:
                    for text, record, _ in made:
                        if text and folder.files_put_off:
                            record = folder.write(record, problem="Its files were put off.")
                            break
                        if text:
                            yield shown(folder, record, f"{done(record)} {text} …", exporting=True)
            except Exception as error:  # the run itself is saved, whatever becomes of its files
                record = folder.write(record, problem=explain(error))
        yield shown(folder, record)

    def remake_mesh(self, folder: RunFolder, options: MeshOptions) -> Iterator[Shown]:
        """Make the mesh of a run again with other options. Closed before its end, it leaves the mesh that is there.

        Raises:
            BusyRunError, UnknownRunError: See `RunFolder.locked`.
            ValueError: If the run has not begun.
        """
        with folder.locked(REMAKE_PATIENCE):
            record = current(folder, folder.read(), held=True)
            if not folder.started:
                raise ValueError("There is nothing to make a mesh of yet. Generate something first.")
            try:
                for text, record, share in files.make_mesh(folder, record, options):
                    state = shown(folder, record, text and f"{text} …", making=bool(text))
                    yield replace(state, share=share) if text else state
            except EmptyFieldError as error:
                raise ValueError("There is no surface yet. Resume the run, or take more steps.") from error

    def look(self, folder: RunFolder) -> Shown:
        """A run as it is, without touching it: also while another window works on it."""
        if not folder.busy:
            return shown(folder, current(folder, folder.read(), held=False))
        record, before = folder.read(), self.line.before(folder.id)
        text = place_text(before) if before else "This run is going on in another window …"
        return shown(folder, record, text, working=True)

    async def follow(self, folder: RunFolder, seconds: float = 1.0) -> AsyncIterator[Shown]:
        """Look on until nobody works on the run. It holds no thread while it waits.

        Args:
            seconds: Between looks.
        """
        while True:
            state = self.look(folder)
            yield state
            if state.settled:
                return
            await asyncio.sleep(seconds)


def current(folder: RunFolder, record: Record, held: bool) -> Record:
    """The record as it is if nobody works on the run: one that says so was left by a server that was killed.

    Args:
        held: The caller has the lock, so that it may write.
    """
    if record.status not in (RUNNING, WAITING):
        return record
    if record.status == WAITING and not folder.started:
        changed = replace(record, message="It lost its place in the line. Resume starts it.")
    else:
        message = "The server was restarted in the middle of it." if record.status == RUNNING else record.message
        changed = replace(_with_saved_step(folder, record), status=PAUSED, message=message)
    return folder.write(changed) if held else changed


def _with_saved_step(folder: RunFolder, record: Record) -> Record:
    """Step, loss and time as the saved run has them, which is what a continuation goes on from."""
    if not folder.started:
        return record
    saved = read_facts(folder.run)
    return replace(
        record, step=saved["step"], steps=saved["config"]["num_inference_steps"], seconds=saved["seconds"],
        loss=saved["losses"][-1]["loss"] if saved["losses"] else None,
    )  # fmt: skip


def _reached(folder: RunFolder, news: News) -> tuple[int, int]:
    """How far a run is: the views that are made, and its steps."""
    return len(Sheets(folder.path).scores()), news.step


def _taken_in(record: Record, news: News) -> Record:
    if not news.steps:
        return record
    return replace(record, step=news.step, steps=news.steps, loss=news.loss, seconds=news.seconds)


def key_of(record: Record) -> str:
    """Under what the times of a run are measured."""
    request = record.request
    return work_key(request.kind, request.prior if request.prompt else "", request.settings)
