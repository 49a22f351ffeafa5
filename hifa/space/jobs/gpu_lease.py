"""GPU leases: a lease loads a run from its folder, advances the run for a limited time and saves it to the folder.

On ZeroGPU a lease is a forked process with pickled arguments and pickled results. ZeroGPU kills the process when it
exceeds the requested duration. Therefore the state of the run is passed through files, and a lease ends before its
deadline. Without ZeroGPU the same generator runs in the server process, without a deadline.
"""

import json
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from ...multiview import SyncDreamerPipeline, best_of_seeds, sheet
from ...multiview.hallucination import EMBEDDED_NOTE
from ...optimization.run import HiFARun
from ...optimization.step import DivergedError
from ...photo_cutout import prepare_picture
from ...pipeline_hifa import HiFAPipeline
from ...storage.checkpoint import write_text_atomically
from ...storage.run_folder import RunError
from .background import Cancelled, halves, saying
from .errors import explain
from .models import ModelCache
from .previews import snapshot
from .run_store import PICTURE, PREVIEWS, RunFolder
from .view_sheets import Sheets


PREVIEW_SECONDS = 0.5  # between previews; this time plus one step must stay below 1 s
SAVE_SECONDS = 5.0  # between checkpoints; longer if saving is slow
NEWS_SECONDS = 0.5  # after this time without progress, a message with the elapsed time is sent
TURN_DEG_PER_SECOND = 9.0
FIRST_LEASE, LONGEST_LEASE = 30, 60  # requested seconds; ZeroGPU's queue favors short leases
RESERVE = 8.0  # seconds at the end of a lease for saving and for returning the GPU
STOPPED, FINISHED, DEADLINE, FAILED = "stopped", "finished", "deadline", "failed"


@dataclass(frozen=True)
class LeaseTask:
    """Task of a lease. The object must stay small, because it is pickled.

    Args:
        folder: Path of the run's folder.
        seconds: Requested duration of the lease, in seconds. The lease ends earlier. `None` means no time limit.
    """

    folder: str
    seconds: float | None = None


@dataclass(frozen=True)
class Progress:
    """Progress message of a lease. The object must stay small, because it is pickled.

    Args:
        text: Current activity, or the note of the run during optimization steps.
        share: Completed fraction of the activity, in [0, 1].
        step: See `Record`.
        steps: See `Record`.
        loss: See `Record`.
        seconds: See `Record`.
        step_seconds: Mean wall time of the recent steps including previews, in seconds. `None` during the first steps.
        previews: See `snapshot`. `None` if there is no new preview.
        end: Reason why the lease ends; empty while it continues.
    """

    text: str = ""
    share: float = 0.0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    step_seconds: float | None = None
    previews: dict[str, str] | None = None
    end: str = ""


Lease = Callable[[LeaseTask], Generator[Progress, None, None]]


def seconds_asked(task: LeaseTask) -> int:
    """Return the duration of a lease in whole seconds, for the argument `duration` of `spaces.GPU`."""
    return math.ceil(task.seconds or LONGEST_LEASE)


def lease_seconds(steps_left: int, step_seconds: float | None, setup_seconds: float) -> int:
    """Return the duration to request for the next lease, in seconds.

    The duration covers the set-up, the remaining steps with a margin of 20 % and the reserve. The upper limit is
    `LONGEST_LEASE`.

    Args:
        steps_left: Number of remaining steps.
        step_seconds: Time of a step as measured in previous leases, in seconds; `None` for the first lease.
        setup_seconds: Time from the start of a lease to its first step, in seconds.
    """
    if step_seconds is None:
        return FIRST_LEASE
    return min(LONGEST_LEASE, math.ceil(setup_seconds + 1.2 * steps_left * step_seconds + RESERVE))


class Models:
    """Models that the leases use.

    Args:
        model_cache: Cache of the priors.
        load_multiview: Function that loads the multi-view model. It is called once, on first use.
    """

    def __init__(self, model_cache: ModelCache, load_multiview: Callable[[], SyncDreamerPipeline]):
        self.model_cache = model_cache
        # All callers share the hooks and timesteps of the model. The lock gives one background thread at a time
        # exclusive access. A canceled thread keeps the lock until the thread ends.
        self.making_views, self._loading = threading.Lock(), threading.Lock()
        self._load, self._multiview = load_multiview, None

    def multiview(self) -> SyncDreamerPipeline:
        """Return the multi-view model. The first call loads the model."""
        with self._loading:
            if self._multiview is None:
                self._multiview = self._load().to(self.model_cache.device)
            return self._multiview


def make_lease(models: Models) -> Lease:
    """Return the generator function that executes a lease with the given models.

    Errors do not propagate from the generator. The last message reports the error, with `end` set to `FAILED`.
    """

    def lease(task: LeaseTask) -> Generator[Progress, None, None]:
        deadline = math.inf if task.seconds is None else time.monotonic() + task.seconds - RESERVE
        folder = RunFolder(Path(task.folder))
        try:
            prior = folder.read().request.prior
            pipe = yield from saying("Getting the models ready", lambda _: models.model_cache.get(prior), telling)
            if not folder.started:
                end = yield from begin(models, pipe, folder, deadline)
                if end:
                    yield Progress(end=end)
                    return
            run = HiFARun.load(folder.run, models.model_cache.device)
            yield from optimize(pipe, run, folder, deadline)
        except Exception as error:  # Report every error as text, because the exception may not be picklable.
            yield Progress(text=explain(error), end=FAILED)

    return lease


def telling(text: str) -> Progress:
    """Return a message about work in progress."""
    return Progress(text=f"{text} …")


def begin(models: Models, pipe: HiFAPipeline, folder: RunFolder, deadline: float) -> Generator[Progress, None, str]:
    """Generate missing views if the run has a picture, then create and save the run at step 0.

    Args:
        models: Models of the leases.
        pipe: Pipeline of the run's prior.
        folder: The run.
        deadline: Time on the clock `time.monotonic` at which to stop.

    Yields:
        Progress messages.

    Returns:
        The reason if the lease ends before the run is created; otherwise an empty string.
    """
    request = folder.read().request
    views, note = None, ""
    if request.kind != "text":
        sheets = Sheets(folder.path)
        if not sheets.given and (missing := sheets.missing(request.view_seeds)):
            yield from saying("Loading the multi-view model", lambda _: models.multiview(), telling)
            for seed in missing:
                end = yield from make_sheet(models, folder, seed, deadline)
                if end:
                    return end
        if request.views_only:
            return FINISHED
        if not sheets.given and models.multiview().embedded:
            note = EMBEDDED_NOTE
        views = sheets.best()  # An uploaded sheet counts as hallucinated too: such views always come from a model.

    def start(_: threading.Event) -> HiFARun:
        with models.model_cache.tokenizing:
            return pipe.start(
                request.prompt or None, request.negative_prompt, views=views, hallucinated=True, seed=request.seed,
                **request.settings,
            )  # fmt: skip

    run = yield from saying("Starting the run", start, telling)
    run.note = f"{run.note} {note}".strip()
    run.save(folder.run)
    return ""


def make_sheet(models: Models, folder: RunFolder, seed: int, deadline: float) -> Generator[Progress, None, str]:
    """Hallucinate the views of one seed.

    Args:
        models: Models of the leases.
        folder: The run.
        seed: Seed of the views.
        deadline: Time on the clock `time.monotonic` at which to stop.

    Yields:
        A message after every denoising step. During a long step, messages with the elapsed time.

    Returns:
        The reason if the lease ends early; otherwise an empty string.
    """
    told: queue.Queue[tuple[int, int] | BaseException | None] = queue.Queue()
    given_up, began = threading.Event(), time.monotonic()

    def work() -> None:
        try:
            with models.making_views:
                _make_sheet(models.multiview(), folder, seed, given_up, told.put)
            told.put(None)
        except BaseException as error:  # The generator raises the error again.
            told.put(error)

    # The call cannot yield, so it runs in a background thread.
    threading.Thread(target=work, daemon=True).start()
    step, steps, text = 0, 1, f"Views of seed {seed}"
    try:
        while True:
            if folder.stop_requested:
                return STOPPED
            if time.monotonic() > deadline and step < steps:  # The work after the last step is short.
                return DEADLINE
            try:
                done = told.get(timeout=NEWS_SECONDS)
            except queue.Empty:
                yield Progress(text=f"{text}, {halves(time.monotonic() - began)}", share=step / steps)
                continue
            if done is None:
                return ""
            if isinstance(done, BaseException):
                raise done
            step, steps = done
            text = f"Views of seed {seed}: denoising step {step} of {steps}"
            yield Progress(text=text, share=step / steps)
    finally:
        given_up.set()


def _make_sheet(
    multiview: SyncDreamerPipeline,
    folder: RunFolder,
    seed: int,
    given_up: threading.Event,
    tell: Callable[[tuple[int, int]], None],
) -> None:
    """Generate one sheet of views and save it to the folder of the run.

    If the call is canceled after the last denoising step, the sheet is still saved.

    Args:
        multiview: The multi-view model.
        folder: The run.
        seed: Seed of the views.
        given_up: Event that cancels the call.
        tell: Callback that receives the number of completed steps and the total number of steps.

    Raises:
        Cancelled: If the call was canceled before the last step.
    """
    sheets, request, side = Sheets(folder.path), folder.read().request, multiview.image_size
    if given_up.is_set() or not sheets.missing((seed,)):  # a canceled call may have made the sheet
        return
    with PIL.Image.open(folder.path / PICTURE) as picture:
        prepared = prepare_picture(picture, side, max(1, round(side * request.object_share))).image

    def watch(pipe: SyncDreamerPipeline, step: int, timestep: int, tensors: dict) -> dict:
        if given_up.is_set() and step + 1 < pipe.num_timesteps:
            raise Cancelled
        tell((step + 1, pipe.num_timesteps))
        return {}

    found = best_of_seeds(
        multiview, prepared, request.elevation_deg, [seed], num_inference_steps=request.view_steps,
        callback_on_step_end=watch,
    )[0]  # fmt: skip
    images = [PIL.Image.fromarray(image) for image in (found.images * 255).round().byte().numpy()]
    if folder.path.exists():  # The store may have deleted the run.
        sheets.add(seed, sheet(images), found.score)


def optimize(pipe: HiFAPipeline, run: HiFARun, folder: RunFolder, deadline: float) -> Iterator[Progress]:
    """Advance a run until it is finished, Stop is requested or the deadline is near.

    The run is saved every few seconds and at the end, also after an error or when the generator is closed.

    Args:
        pipe: Pipeline of the run's prior.
        run: Run to advance.
        folder: Folder of the run.
        deadline: Time on the clock `time.monotonic` at which to stop.

    Yields:
        Messages with previews, about two per second.

    Raises:
        DivergedError: If the optimization diverged.
    """
    started = shown = saved = time.monotonic()
    times, save_seconds = deque([started], maxlen=20), 0.0
    yield news_of(run, times, look(run, folder, 0.0))
    end = FINISHED
    try:
        for _ in pipe.advance(run):
            now = time.monotonic()
            times.append(now)
            if folder.stop_requested:
                end = STOPPED
                break
            if now + 3 * (now - times[0]) / (len(times) - 1) + save_seconds > deadline and not run.finished:
                end = DEADLINE
                break
            if now - shown > PREVIEW_SECONDS:
                yield news_of(run, times, look(run, folder, (now - started) * TURN_DEG_PER_SECOND))
                # The interval counts from the start of the preview. After a slow preview, half an interval is left for
                # steps.
                shown = max(now, time.monotonic() - PREVIEW_SECONDS / 2)
            if now - saved > max(SAVE_SECONDS, 10 * save_seconds):
                run.save(folder.run)
                saved = time.monotonic()
                save_seconds = saved - now
    except DivergedError:
        with suppress(RunError):  # `run.save` refuses a field with non-finite values.
            _save(run, folder)
        raise
    except BaseException:  # including GeneratorExit when the consumer closes the generator
        _save(run, folder)
        raise
    _save(run, folder)
    yield news_of(run, times, look(run, folder, 0.0), end)


def _save(run: HiFARun, folder: RunFolder) -> None:
    if folder.path.exists():  # The store may have deleted the run.
        run.save(folder.run)


def look(run: HiFARun, folder: RunFolder, azimuth_deg: float) -> dict[str, str]:
    """Render the previews of a run and save them to its folder for other windows.

    Args:
        run: Run to render.
        folder: Folder of the run.
        azimuth_deg: Azimuth of the camera relative to the front, in degrees.

    Returns:
        The previews, see `snapshot`.
    """
    previews = snapshot(run, azimuth_deg)
    if folder.path.exists():
        write_text_atomically(folder.path / PREVIEWS, json.dumps(previews))
    return previews


def news_of(run: HiFARun, times: deque[float], previews: dict[str, str], end: str = "") -> Progress:
    """Return a message about a run, with the estimated mean time of its remaining steps.

    Args:
        run: The run.
        times: Times at the ends of the recent steps, in seconds.
        previews: Previews of the run.
        end: See `Progress`.
    """
    step_seconds, config = None, run.config
    if len(times) > 2 and not run.finished:
        recent, end_step = config.work(run.step - len(times) + 1, run.step), config.num_inference_steps
        left = config.work(run.step, end_step) / (end_step - run.step)
        step_seconds = (times[-1] - times[0]) / recent * left
    return Progress(
        text=run.note, step=run.step, steps=run.config.num_inference_steps,
        loss=run.losses[-1]["loss"] if run.losses else None, seconds=run.seconds, step_seconds=step_seconds,
        previews=previews, end=end,
    )  # fmt: skip
