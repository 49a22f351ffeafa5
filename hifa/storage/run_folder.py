"""Access to the metadata of saved runs, without loading the runs or importing torch."""

import json
from pathlib import Path
from typing import Any

from .migration import current_metadata


FILE = "run.safetensors"


class RunError(ValueError):
    """Error for a run folder that cannot be read or written. The message names the folder."""


def is_saved_in(folder: str | Path) -> bool:
    """Return whether `folder` holds a completely saved run. A partial file does not count."""
    return (Path(folder) / FILE).is_file()


def find_saved(folder: str | Path) -> Path:
    """Return the folder of a saved run: `folder`, or its subfolder `run`, which the CLI creates.

    Raises:
        RunError: If neither folder holds a run.
    """
    for place in (Path(folder), Path(folder) / "run"):
        if is_saved_in(place):
            return place
    raise RunError(f"{str(folder)!r} holds no HiFA run (no {FILE}). Use the folder that a run was saved to.")


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """Read the metadata of a saved run without its tensors: prompt, settings, step and losses."""
    from safetensors import safe_open

    with safe_open(Path(folder) / FILE, "np") as file:
        return current_metadata(json.loads(file.metadata()["facts"]))


def check_may_save(folder: str | Path) -> None:
    """Check that a new run in `folder` does not overwrite an unfinished or unreadable run.

    Raises:
        RunError: If the folder holds such a run. The message suggests no remedy. The CLI appends a remedy.
    """
    if not is_saved_in(folder):
        return
    try:
        metadata = read_metadata(folder)
        step, end = metadata["step"], metadata["config"]["num_inference_steps"]
    except Exception as error:  # The classes of safetensors and json differ.
        raise RunError(
            f"{str(folder)!r} holds a run that cannot be read ({type(error).__name__}) and would be overwritten."
        ) from error
    if step < end:
        raise RunError(f"{str(folder)!r} holds an unfinished run ({step} of {end} steps) that would be overwritten.")
