"""What lies in the folder of a saved run, found out without loading it, or torch."""

import json
from pathlib import Path
from typing import Any


FILE = "run.safetensors"


class RunError(ValueError):
    """A run folder that cannot be read or written; the message says which and what to do."""


def is_saved_in(folder: str | Path) -> bool:
    """Whether a save to `folder` was ever finished; the folder alone, or a half written file, is no run yet."""
    return (Path(folder) / FILE).is_file()


def find_saved(folder: str | Path) -> Path:
    """The folder of a run: `folder`, or `run` in it, which is where the command line saves.

    Raises:
        RunError: If there is none in either.
    """
    for place in (Path(folder), Path(folder) / "run"):
        if is_saved_in(place):
            return place
    raise RunError(f"{str(folder)!r} holds no HiFA run (no {FILE}). Give the folder that a run was saved to.")


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Prompt, settings, step and losses of a saved run, without its tensors: enough for a list of runs."""
    from safetensors import safe_open

    with safe_open(Path(folder) / FILE, "np") as file:
        return json.loads(file.metadata()["facts"])


def check_may_save(folder: str | Path) -> None:
    """Refuse a folder where a new run would overwrite one that is not finished, or cannot be read.

    Raises:
        RunError: Saying what is there.
    """
    if not is_saved_in(folder):
        return
    try:
        facts = read_facts(folder)
        step, end = facts["step"], facts["config"]["num_inference_steps"]
    except Exception as error:  # safetensors raises its own class, json another
        raise RunError(
            f"{str(folder)!r} holds a run that cannot be read ({type(error).__name__}), and would be overwritten."
        ) from error
    if step < end:
        raise RunError(
            f"{str(folder)!r} holds an unfinished run ({step} of {end} steps), and it would be overwritten."
        )
