"""Checks of the arguments of a radiance field, for new and for saved fields."""

from typing import Any

from ..settings import FIELD_LIMITS, check_number, check_resolutions


FIELD_RANGES = tuple((name, low, high) for name, (low, high) in FIELD_LIMITS.items())
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
        check_number(name, arguments[name], float if name in FRACTIONS else int, low, high)
    check_resolutions(arguments["base_resolution"], arguments["max_resolution"])
