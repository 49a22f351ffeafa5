"""Valid ranges of the arguments of a radiance field, for settings of a run and for saved fields."""

import math
from typing import Any

from .spherical_harmonics import MAX_BANDS


# Outside these ranges, cell counts overflow in the compiled loops, or a field does not fit into memory.
FIELD_RANGES: tuple[tuple[str, float, float], ...] = (
    ("bound", 0.01, 100), ("levels", 1, 32), ("base_resolution", 1, 4096), ("max_resolution", 1, 2**16),
    ("log2_hashmap_size", 4, 24), ("hidden_dim", 1, 1024), ("view_bands", 1, MAX_BANDS), ("blob_density", 0, 1000),
    ("blob_radius", 0.01, 100),
)  # fmt: skip
# Arguments of the field that are not settings of a run.
OWN_RANGES: tuple[tuple[str, float, float], ...] = (("hidden_layers", 0, 8), ("seed", -(2**63), 2**64 - 1))
FRACTIONS = ("bound", "blob_density", "blob_radius")  # all other arguments are integers


def check_field(arguments: dict[str, Any]) -> None:
    """Check the types and ranges of the arguments of a `RadianceField`.

    Args:
        arguments: All arguments, by name.

    Raises:
        ValueError: If an argument is out of range or has a wrong type. The message names the argument.
    """
    for name, low, high in (*FIELD_RANGES, *OWN_RANGES):
        value = arguments[name]
        if isinstance(value, bool) or not isinstance(value, int | float if name in FRACTIONS else int):
            kind = "a number" if name in FRACTIONS else "a whole number"
            raise ValueError(f"{name} must be {kind}, got {value!r}.")
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value}.")
    check_resolutions(arguments["base_resolution"], arguments["max_resolution"])


def check_resolutions(base: int, finest: int) -> None:
    """Check that the finest level of a hash grid is at least as fine as the first level.

    Raises:
        ValueError: If `finest` is less than `base`.
    """
    if finest < base:
        raise ValueError(f"max_resolution must be at least base_resolution={base}, got {finest}.")
