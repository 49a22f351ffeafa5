"""Optimization of a run over many steps: `advance` step by step, and `run_to_end` with checkpoints and Ctrl-C."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from diffusers.utils import logging
from tqdm.auto import tqdm

from ..storage.run_folder import RunError
from .distillation import Distiller
from .interrupt import Interrupted, first_noted
from .run import HiFARun
from .step import DivergedError, HiFAStep, optimization_step
from .surface_guidance import SurfaceModels


logger = logging.get_logger(__name__)


def advance(
    run: HiFARun, distiller: Distiller | None, surfaces: SurfaceModels, steps: int | None = None
) -> Iterator[HiFAStep]:
    """Optimize a run and yield after each step, see `HiFAPipeline.advance`.

    Args:
        run: Run to optimize in place.
        distiller: Distiller of the run, or `None` for a reconstruction without a prior.
        surfaces: Models for the surface losses.
        steps: Largest number of steps. If `None`, continue to the end of the run.

    Raises:
        DivergedError: If no attempt at a step has a finite loss and gradient.
    """
    end = run.config.num_inference_steps
    end = end if steps is None else min(end, run.step + steps)
    while run.step < end:
        clock = time.perf_counter()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                result = optimization_step(run, distiller, surfaces)
        finally:
            run.seconds += time.perf_counter() - clock
        if result.skipped:
            logger.warning(
                f"Step {run.step} took {result.skipped + 1} attempts, because losses or gradients were not finite."
            )
        yield result


def run_to_end(
    run: HiFARun,
    steps: Iterator[HiFAStep],
    progress: tqdm,
    stopped: Callable[[], bool],
    save_dir: str | Path | None,
    save_every: int,
    on_step: Callable[[HiFAStep], None] | None,
) -> None:
    """Iterate over the steps of a run with a progress bar and checkpoints, see `HiFAPipeline.run_to_end`.

    Args:
        run: Run to optimize in place.
        steps: Iterator of `advance`.
        progress: Progress bar.
        stopped: Function that returns whether to end the run early. Called after each step.
        save_dir: Folder of the checkpoint, or `None`.
        save_every: Number of steps between two checkpoints.
        on_step: Called after each step.

    Raises:
        Interrupted: After Ctrl-C, when the current step is finished and the run is saved.
        RunError: If the folder cannot be written.
        DivergedError: See `advance`.
    """
    saved = None
    with first_noted() as interrupt, progress:
        progress.initial = progress.n = run.step
        try:
            for step in steps:
                progress.update()
                progress.set_postfix(loss=f"{step.losses['loss']:.3f}", t=step.timestep)
                if save_dir is not None and run.step % save_every == 0:
                    run.save(save_dir)
                    saved = run.step
                if on_step is not None:
                    on_step(step)
                if stopped() or interrupt.noted:
                    break
        except DivergedError:
            if save_dir is not None:  # Even if this step is already saved: the random state has changed.
                with suppress(RunError):  # Saving fails if a callback made the field infinite or NaN.
                    run.save(save_dir)
            saved = run.step
            raise
        finally:
            if save_dir is not None and saved != run.step:
                run.save(save_dir)
    if interrupt.noted:
        raise Interrupted


def check_save_every(steps: int) -> None:
    """Check the number of steps between two checkpoints.

    Raises:
        ValueError: If `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"save_every must be at least 1 step, got {steps}.")
