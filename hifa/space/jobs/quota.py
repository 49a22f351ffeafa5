"""GPU time that a run takes from a visitor's daily ZeroGPU quota.

ZeroGPU grants a lease of n seconds if at least 1.5 n seconds of the quota are left. The factor of 1.5 belongs to the
GPUs that ZeroGPU uses at present. The seconds that the lease takes are deducted from the quota.
"""

import math
from dataclasses import replace

from .gpu_lease import LONGEST_LEASE, RESERVE
from .models import Preset
from .step_times import clock


DAYS = {"a visitor": 120, "a free account": 300, "PRO": 2400}  # GPU seconds per day, by account
# GPU seconds of a preset: Quick leaves a margin in a visitor's quota; Standard takes most of a free account's quota.
BUDGETS = {"Quick": 70.0, "Standard": 180.0}
GUESSED_STEP, GUESSED_SETUP = 0.25, 8.0  # seconds, until a run has been measured
COARSE = 50  # steps of a preset are a multiple of this number
FACTOR = 1.5  # required quota, as a multiple of the requested seconds


def gpu_seconds(steps: int, step_seconds: float, setup_seconds: float) -> float:
    """Return the GPU seconds of a run: its steps, and the setup of each of its leases.

    `RESERVE` seconds of each lease are not available for steps.

    Args:
        steps: Number of steps of the run.
        step_seconds: Seconds per step.
        setup_seconds: Seconds from the start of a lease to its first step.
    """
    work = steps * step_seconds
    room = max(LONGEST_LEASE - RESERVE - setup_seconds, step_seconds)
    leases = max(1, math.ceil(work / room))
    return work + leases * setup_seconds


def within_budget(preset: Preset, step_seconds: float | None, setup_seconds: float | None) -> Preset:
    """Return the preset with as many of its steps as its budget allows, but at least `COARSE` steps.

    A preset without a budget is returned unchanged.

    Args:
        preset: Preset with the maximum number of steps.
        step_seconds, setup_seconds: Measured times as in `gpu_seconds`; `None` before the first measurement.
    """
    budget = BUDGETS.get(preset.name)
    if budget is None:
        return preset
    each, setup = step_seconds or GUESSED_STEP, GUESSED_SETUP if setup_seconds is None else setup_seconds
    steps = range(COARSE, preset.steps + 1, COARSE)
    return replace(preset, steps=max((n for n in steps if gpu_seconds(n, each, setup) <= budget), default=COARSE))


def left_for_last(seconds: float) -> float:
    """Return the daily quota, in seconds, with which the last lease of a run of `seconds` is still granted."""
    return seconds + (FACTOR - 1) * min(seconds + RESERVE, LONGEST_LEASE) + RESERVE


def quota_text(seconds: float) -> str:
    """Return a sentence about the daily quotas into which a run of `seconds` fits."""
    fits = [who for who, day in DAYS.items() if left_for_last(seconds) <= day]
    about = f"About {clock(seconds)} of GPU time with setup: "
    if len(fits) == len(DAYS):
        return about + "fits into every daily quota."
    if not fits:
        return about + "more than the daily quota of PRO. The run pauses, and Resume continues it the next day."
    short = next(who for who in reversed(DAYS) if who not in fits)
    return (
        about
        + f"fits into the daily quota of {fits[0]} ({clock(DAYS[fits[0]])}), not of {short} ({clock(DAYS[short])})."
    )
