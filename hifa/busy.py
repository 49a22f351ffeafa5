"""Adjustment to a busy CPU: how long the OpenMP threads of torch spin before they sleep."""

import os
import time
from pathlib import Path


SPINS = "1000"  # iterations of a thread's wait loop, which take a few microseconds
LOADAVG = Path("/proc/loadavg")  # the fourth field: runnable threads / all threads
LOOKS, LOOK_SECONDS = 5, 0.005


def share_cpu() -> None:
    """Make OpenMP threads sleep instead of spin while they wait, if other processes use the CPU.

    Call this function before importing torch, because OpenMP (libgomp) reads `GOMP_SPINCOUNT` during the import. If
    the environment sets `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY`, the function changes nothing.

    A spinning thread occupies a core that the awaited thread could use. On two idle cores, spinning reduces the
    step time by a sixth. With another process on one of the cores, steps took thirty to fifty times as long, because a
    time slice of the other process is as long as a thousand short waits.
    """
    if not any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")) and others_run():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def others_run() -> bool:
    """Return whether another thread was runnable in most of a few samples of the system load.

    Return `False` on systems without `/proc/loadavg`.
    """
    seen = 0
    for _ in range(LOOKS):
        try:
            seen += int(LOADAVG.read_text().split()[3].partition("/")[0]) > 1
        except (OSError, ValueError, IndexError):
            return False
        time.sleep(LOOK_SECONDS)
    return seen > LOOKS / 2
