"""Sharing a CPU with others: how long torch's threads wait for each other awake."""

import os
import time
from pathlib import Path


SPINS = "1000"  # turns of the loop in which a thread waits, some microseconds
LOADAVG = Path("/proc/loadavg")  # the fourth field: threads that run or could run now / all
LOOKS, LOOK_SECONDS = 5, 0.005


def share_cpu() -> None:
    """Have threads sleep while they wait for each other, if others use the CPU just now; to be called before torch is
    loaded, whose OpenMP (libgomp) reads GOMP_SPINCOUNT then.

    A thread that waits awake keeps its core from the one it waits for. Alone on two cores a step takes a sixth less
    time so; with another process busy on one of them it took thirty to fifty times as long, for the time slices of
    others are as long as a thousand short waits. Whoever has set GOMP_SPINCOUNT or OMP_WAIT_POLICY is not overruled.
    """
    if not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")) and others_run():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def others_run() -> bool:
    """Whether in most of a few looks another thread than this one was running; False where the system does not say."""
    seen = 0
    for _ in range(LOOKS):
        try:
            seen += int(LOADAVG.read_text().split()[3].partition("/")[0]) > 1
        except (OSError, ValueError, IndexError):
            return False
        time.sleep(LOOK_SECONDS)
    return seen > LOOKS / 2
