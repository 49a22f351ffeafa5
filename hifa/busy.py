"""Sharing a CPU with others: how long torch's threads wait for each other awake."""

import contextlib
import os


SPINS = "1000"  # turns of the loop in which a thread waits, some microseconds


def share_cpu() -> None:
    """Have threads sleep while they wait for each other, if the machine was busy in the last minute; to be called
    before torch is loaded, whose OpenMP (libgomp) reads GOMP_SPINCOUNT then.

    A thread that waits awake keeps its core from the one it waits for. Alone on two cores a step takes a sixth less
    time so; with another process busy on one of them it took thirty to fifty times as long, for the time slices of
    others are as long as a thousand short waits. Right after another run this one is that sixth slower, for all
    processes of a minute count. Whoever has set GOMP_SPINCOUNT or OMP_WAIT_POLICY is not overruled.
    """
    if any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        return
    with contextlib.suppress(AttributeError, OSError):  # not every system tells
        if os.getloadavg()[0] > 0.5:
            os.environ["GOMP_SPINCOUNT"] = SPINS
