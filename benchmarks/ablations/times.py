"""Times of variants, measured side by side, so that a busy machine slows all of them alike."""

import time
from pathlib import Path

from hifa import HiFAPipeline

from .kept import digest, kept
from .variants import Variant, hifa_config, replace


TURNS = 16  # parts that each run is split into


def side_by_side(pipe: HiFAPipeline, compared: list[Variant], steps: int, prompt: str) -> dict[str, float]:
    """Return the seconds of a whole run by name of variant. All runs take turns.

    Args:
        steps: Steps of HiFA.
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
    """Return `side_by_side`, cached in a file."""
    key = digest(repr((compared, steps, prompt)).encode())
    times = kept(path, key, lambda: side_by_side(pipe, compared, steps, prompt))
    return {variant.name: times[variant.name] for variant in compared}
