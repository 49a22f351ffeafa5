"""Names of earlier versions in saved files, and their current names. This module needs no torch."""

from collections.abc import Mapping
from typing import Any, TypeVar


T = TypeVar("T")

# Version 0.2 changed these names: US spelling, and the names of instant-ngp for the hash grid.
SETTINGS = {
    "regulariser_warmup": "regularizer_warmup",
    "finest_resolution": "max_resolution",
    "log2_entries": "log2_hashmap_size",
}
TENSORS = {"colour_net": "color_net", "views/colour": "views/color"}  # parts of tensor names
RECORD = {"facts": "metadata"}
PREVIEWS = {"colour": "color"}


def renamed(values: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    """Return a dictionary with the keys of earlier versions replaced by their current names.

    Args:
        values: Dictionary from a file.
        names: Earlier names and their current names.
    """
    return {names.get(key, key): value for key, value in values.items()}


def current_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a run or an asset with the current names of the settings in `config`."""
    config = metadata.get("config")
    return metadata | {"config": renamed(config, SETTINGS)} if isinstance(config, dict) else metadata


def current_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return a dictionary with the current tensor names. The values may be tensors or their specs."""
    return {_current_name(key): value for key, value in tensors.items()}


def _current_name(name: str) -> str:
    for earlier, current in TENSORS.items():
        name = name.replace(earlier, current)
    return name
