"""How long a step takes here, measured in earlier runs, so that presets can say what they cost."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..state import write_text_atomically


# Settings that a step takes as long with, whatever they are.
FREE = ("num_inference_steps", "guidance_scale", "image_guidance_end")


class Timings:
    """Seconds by kind of work, in a small file: of a step, and from the start of a lease to its first step.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def get(self, key: str) -> float | None:
        """Seconds per step, as guessed before the first measurement; `None` without either."""
        known = self._read()
        return known.get(key, known.get(f"{key} guess"))

    def setup(self, key: str) -> float | None:
        """Seconds of a lease before its first step; `None` before the first measurement."""
        return self._read().get(f"{key} set-up")

    def guess(self, key: str, step_seconds: float) -> None:
        """What to say of a step until one is measured in a run."""
        write_text_atomically(self.path, json.dumps(self._read() | {f"{key} guess": step_seconds}))

    def note(self, key: str, step_seconds: float, setup_seconds: float) -> None:
        """Take measurements in: half of a figure is the last one."""
        known = self._read()
        for name, seconds in ((key, step_seconds), (f"{key} set-up", setup_seconds)):
            known[name] = seconds if name not in known else (known[name] + seconds) / 2
        write_text_atomically(self.path, json.dumps(known))

    def _read(self) -> dict[str, float]:
        try:
            return json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}


def work_key(kind: str, prior: str, settings: dict[str, Any]) -> str:
    """Under what the times of a run are measured: its kind, its prior, and the settings that a step depends on.

    Args:
        prior: Empty without a prompt.
    """
    telling = {name: value for name, value in settings.items() if name not in FREE}
    digest = hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()[:8] if telling else "default"
    return f"{kind}/{prior}/{digest}" if prior else f"{kind}/{digest}"


def clock(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
