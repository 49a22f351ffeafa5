"""What the arguments of a radiance field may be: the settings of a run and saved fields are checked by the same."""

import math
from typing import Any

from .spherical_harmonics import MAX_BANDS


# Beyond, the numbers of cells overflow in the compiled loops, or a field takes more memory than there is.
FIELD_RANGES: tuple[tuple[str, float, float], ...] = (
    ("bound", 0.01, 100), ("levels", 1, 32), ("base_resolution", 1, 4096), ("finest_resolution", 1, 2**16),
    ("log2_entries", 4, 24), ("hidden_dim", 1, 1024), ("view_bands", 1, MAX_BANDS), ("blob_density", 0, 1000),
    ("blob_radius", 0.01, 100),
)  # fmt: skip
# Of the field alone: a run has no settings of these names.
OWN_RANGES: tuple[tuple[str, float, float], ...] = (("hidden_layers", 0, 8), ("seed", -(2**63), 2**64 - 1))
FRACTIONS = ("bound", "blob_density", "blob_radius")  # the others are whole numbers


def check_field(arguments: dict[str, Any]) -> None:
    """
    Args:
        arguments: Of `RadianceField`, by name.

    Raises:
        ValueError: If one is out of range or of another type; the message names it.
    """
    for name, low, high in (*FIELD_RANGES, *OWN_RANGES):
        value = arguments[name]
        if isinstance(value, bool) or not isinstance(value, int | float if name in FRACTIONS else int):
            kind = "a number" if name in FRACTIONS else "a whole number"
            raise ValueError(f"{name} must be {kind}, got {value!r}.")
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value}.")
    check_resolutions(arguments["base_resolution"], arguments["finest_resolution"])


def check_resolutions(base: int, finest: int) -> None:
    """
    Raises:
        ValueError: If the finest level of a hash grid is coarser than the first.
    """
    if finest < base:
        raise ValueError(f"finest_resolution must be at least base_resolution={base}, got {finest}.")
