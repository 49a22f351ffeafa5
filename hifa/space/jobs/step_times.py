"""Step times measured in earlier runs on this machine, to estimate the duration of a run."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...storage.checkpoint import write_text_atomically


# Settings that do not affect the time of a step.
FREE = ("num_inference_steps", "guidance_scale", "image_guidance_end")
FIRST_SHARE = 0.1  # smallest fraction from which `ShareClock` estimates the remaining time


class Timings:
    """Step and setup times by kind of work, in a small file.

    All times are in seconds. The setup time is the time from the start of a lease to its first step.

    Args:
        path: Path of the JSON file, which need not exist.
    """

    def __init__(self, path: Path):
        self.path = path

    def get(self, key: str) -> float | None:
        """Return the measured seconds per step. Without a measurement, return the guess, or `None` without a guess."""
        known = self._read()
        return known.get(key, known.get(f"{key} guess"))

    def setup(self, key: str) -> float | None:
        """Return the seconds of a lease before its first step; `None` before the first measurement."""
        return self._read().get(f"{key} set-up")

    def guess(self, key: str, step_seconds: float) -> None:
        """Store a guess of the step time, used until a run is measured."""
        write_text_atomically(self.path, json.dumps(self._read() | {f"{key} guess": step_seconds}))

    def note(self, key: str, step_seconds: float, setup_seconds: float) -> None:
        """Store measurements. Each stored time is the mean of its previous value and the new measurement."""
        known = self._read()
        for name, seconds in ((key, step_seconds), (f"{key} set-up", setup_seconds)):
            known[name] = seconds if name not in known else (known[name] + seconds) / 2
        write_text_atomically(self.path, json.dumps(known))

    def _read(self) -> dict[str, float]:
        try:
            return json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}


def work_key(kind: str, prior: str, settings: dict[str, Any]) -> str:
    """Return the key of a run's times, from its kind, its prior and the settings that affect the step time.

    Args:
        kind: Kind of the run, as in `Request`.
        prior: Key of the prior; empty without a prompt.
        settings: Fields of `HiFAConfig` that differ from the default of the prior.
    """
    telling = {name: value for name, value in settings.items() if name not in FREE}
    digest = hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:8] if telling else "default"
    return f"{kind}/{prior}/{digest}" if prior else f"{kind}/{digest}"


class ShareClock:
    """Estimate of the remaining time of work that reports its completed fraction.

    Args:
        now: Function that returns the current time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now, self.began = now, now()

    def left_text(self, share: float) -> str:
        """Return a text such as ", about 4 s left".

        The text is empty before `FIRST_SHARE`, and in the last half second.

        Args:
            share: Completed fraction, in [0, 1].
        """
        if share < FIRST_SHARE:
            return ""
        left = (self.now() - self.began) * (1 - share) / share
        return f", about {clock(left)} left" if left >= 0.5 else ""


def clock(seconds: float) -> str:
    """Format a duration in seconds, such as "2 min 5 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
