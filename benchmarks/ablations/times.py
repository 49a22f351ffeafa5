"""Run times of variants. The runs alternate, so that a busy machine slows all variants alike."""

import time
from pathlib import Path

from hifa import HiFAPipeline

from .kept import digest, kept
from .variants import Variant, hifa_config, replace


TURNS = 16  # number of parts of each run


def side_by_side(pipe: HiFAPipeline, compared: list[Variant], steps: int, prompt: str) -> dict[str, float]:
    """Return the seconds of a whole run by name of variant. The runs alternate, one part at a time.

    Args:
        pipe: Pipeline with the prior.
        compared: Variants to time.
        steps: Number of steps of HiFA.
        prompt: Prompt of all runs.
    """
    runs = {
        variant.name: pipe.start(prompt, seed=0, config=replace(hifa_config(steps), **variant.changes))
        for variant in compared
    }
    seconds = dict.fromkeys(runs, 0.0)
    for turn in range(1, TURNS + 1):
        for name, run in runs.items():
            start, goal = time.perf_counter(), round(run.config.num_inference_steps * turn / TURNS)
            for _ in pipe.advance(run, steps=goal - run.step):
                pass
            seconds[name] += time.perf_counter() - start
    return seconds


def kept_times(path: Path, pipe: HiFAPipeline, compared: list[Variant], steps: int, prompt: str) -> dict[str, float]:
    """Return the result of `side_by_side`, cached in a file."""
    key = digest(repr((compared, steps, prompt)).encode())
    times = kept(path, key, lambda: side_by_side(pipe, compared, steps, prompt))
    return {variant.name: times[variant.name] for variant in compared}
