"""What a run costs of a visitor's day on ZeroGPU, and whether it fits.

Figures of the platform: a lease that asks for n seconds is granted to who has 1.5 n left (its present cards count so),
and what a lease takes is counted.
"""

import math
from dataclasses import replace

from .lease import LONGEST_LEASE, RESERVE
from .priors import Preset
from .timings import clock


DAYS = {"a visitor": 120, "a free account": 300, "PRO": 2400}  # seconds of GPU in a day, by who asks
# Seconds of GPU that a preset is made for: a visitor's day with some room, and most of that of a free account.
BUDGETS = {"Quick": 70.0, "Standard": 180.0}
GUESSED_STEP, GUESSED_SETUP = 0.25, 8.0  # seconds, until a run has told better
COARSE = 50  # steps of a preset are a multiple of so many
FACTOR = 1.5  # of what is asked for, what has to be left


def gpu_seconds(steps: int, step_seconds: float, setup_seconds: float) -> float:
    """What a run takes of the GPU: its steps, and in each of its leases the set-up and, but for the last, the reserve.

    Args:
        setup_seconds: From the start of a lease to its first step.
    """
    work = steps * step_seconds
    room = max(LONGEST_LEASE - RESERVE - setup_seconds, step_seconds)
    leases = max(1, math.ceil(work / room))
    return work + leases * setup_seconds


def within_budget(preset: Preset, step_seconds: float | None, setup_seconds: float | None) -> Preset:
    """A preset with as many steps as its budget allows, and no more than it has; the same if it has no budget.

    Args:
        step_seconds, setup_seconds: As measured; `None` before that.
    """
    budget = BUDGETS.get(preset.name)
    if budget is None:
        return preset
    each, setup = step_seconds or GUESSED_STEP, GUESSED_SETUP if setup_seconds is None else setup_seconds
    steps = range(COARSE, preset.steps + 1, COARSE)
    return replace(preset, steps=max((n for n in steps if gpu_seconds(n, each, setup) <= budget), default=COARSE))


def left_for_last(seconds: float) -> float:
    """What has to be left of a day so that a run of so many seconds ends: its last lease has to be granted."""
    return seconds + (FACTOR - 1) * min(seconds + RESERVE, LONGEST_LEASE) + RESERVE


def quota_text(seconds: float) -> str:
    """Whose day a run fits into."""
    fits = [who for who, day in DAYS.items() if left_for_last(seconds) <= day]
    about = f"About {clock(seconds)} of the GPU, set-up counted: "
    if len(fits) == len(DAYS):
        return about + "it fits into anybody's day."
    if not fits:
        return about + "more than a day has even with PRO; it pauses, and Resume goes on the next day."
    short = next(who for who in reversed(DAYS) if who not in fits)
    return (
        about + f"it fits into the day of {fits[0]} ({clock(DAYS[fits[0]])}), not of {short} ({clock(DAYS[short])})."
    )
