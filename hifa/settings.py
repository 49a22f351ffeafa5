"""Declaration of settings in a dataclass, their validation, their parsing from text, and their reference table.

A setting declares its default, its range or choices, and its help text in one place, see `setting`. This module and
`config` do not import torch, so that the CLI can reject invalid settings at once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, cast, get_args, get_origin


# Ranges of the settings that are also arguments of a `RadianceField`, which checks saved fields against these ranges.
# Outside of the ranges, cell counts overflow in the compiled loops, or a field does not fit into memory.
FIELD_LIMITS: dict[str, tuple[float, float]] = {
    "bound": (0.01, 100),
    "levels": (1, 32),
    "base_resolution": (1, 4096),
    "max_resolution": (1, 2**16),
    "log2_hashmap_size": (4, 24),
    "hidden_dim": (1, 1024),
    "view_bands": (1, 4),  # `spherical_harmonics.MAX_BANDS`
    "blob_density": (0, 1000),
    "blob_radius": (0.01, 100),
}


@dataclass(frozen=True)
class Setting:
    """Declaration of a setting.

    Args:
        name: Name of the setting.
        type: `int`, `float`, `str`, a pair `tuple[float, float]`, or a kernel `tuple[float, ...]`.
        default: Default value.
        low, high: Bounds of a number or of both numbers of a pair, inclusive; `None` for text and kernels.
        help: Description of the setting, with the unit and the meaning of special values.
        choices: Valid values of a text.
        group: Heading of the setting in the reference table.
    """

    name: str
    type: Any
    default: Any
    low: float | None
    high: float | None
    help: str
    choices: tuple[str, ...]
    group: str

    @property
    def is_tuple(self) -> bool:
        """Return whether the setting is a pair or a kernel."""
        return get_origin(self.type) is tuple

    @property
    def is_kernel(self) -> bool:
        """Return whether the setting is a kernel."""
        return self.is_tuple and Ellipsis in get_args(self.type)

    def check(self, value: Any) -> None:
        """Check a value on its own, without the other settings.

        Raises:
            ValueError: If the value has a wrong type, is NaN or infinite, or is out of range. The message names the
                setting and the value.
        """
        name, low, high = self.name, cast(float, self.low), cast(float, self.high)  # both unused for text and kernels
        if self.type is str:
            if value not in self.choices:
                raise ValueError(f"{name} must be one of {', '.join(self.choices)}, got {value!r}.")
        elif not self.is_tuple:
            check_number(name, value, self.type, low, high)
        elif not isinstance(value, tuple):
            raise ValueError(f"{name} must be a tuple of numbers, such as (1.0, 2.0), got {value!r}.")
        else:
            for number in value:
                _check_type(name, number, float, value)
            if self.is_kernel:
                _check_kernel(name, value)
            elif len(value) != 2 or not low <= value[0] <= value[1] <= high:
                raise ValueError(f"{name} must be a pair (a, b) with {low} <= a <= b <= {high}, got {value}.")

    def parse(self, text: str) -> Any:
        """Convert a text, such as `"0.5"`, or `"2.4,2.6"` for a tuple, to a value of the type of the setting.

        Raises:
            ValueError: If the text does not have the type of the setting, or if `check` rejects the value.
        """
        try:
            value = tuple(map(float, text.split(","))) if self.is_tuple else self.type(text)
        except ValueError:
            kind = "numbers separated by commas, such as 1.0,2.0" if self.is_tuple else _kind(self.type)
            raise ValueError(f"{self.name} must be {kind}, got {text!r}.") from None
        self.check(value)
        return value

    def range_text(self) -> str:
        """Describe the range or the choices for the reference table."""
        if self.choices:
            return ", ".join(self.choices)
        if self.is_kernel:
            return "odd number of values, each at least 0, not all 0"
        bounds = f"{format_value(self.low)} to {format_value(self.high)}"
        return f"pair, {bounds}" if self.is_tuple else bounds


def setting(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    help: str = "",
    *,
    choices: tuple[str, ...] = (),
    group: str = "",
) -> Any:
    """Declare a setting as a field of a dataclass, in the same way as `dataclasses.field`.

    Args:
        default: See `Setting`.
        low: See `Setting`.
        high: See `Setting`.
        help: See `Setting`.
        choices: See `Setting`.
        group: Heading of this setting and of the next settings in the reference table; empty for the heading of the
            previous setting.
    """
    return field(
        default=default, metadata={"low": low, "high": high, "help": help, "choices": choices, "group": group}
    )


@cache
def settings_of(config: type) -> dict[str, Setting]:
    """Return the settings of a dataclass by name, in the order of their declaration.

    Args:
        config: Dataclass whose fields are all declared with `setting`.
    """
    settings, group = {}, ""
    for declared in fields(config):
        group = declared.metadata["group"] or group
        details = {**declared.metadata, "group": group}
        settings[declared.name] = Setting(declared.name, declared.type, declared.default, **details)
    return settings


def check_number(name: str, value: Any, kind: type, low: float, high: float) -> None:
    """Check the type and the range of a number.

    Args:
        name: Name of the number in the message.
        value: Value to check.
        kind: `int` for a whole number, `float` for any number.
        low: Lower bound, inclusive.
        high: Upper bound, inclusive.

    Raises:
        ValueError: If the value has a wrong type, is NaN or infinite, or is out of range.
    """
    _check_type(name, value, kind, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}.")


def _check_type(name: str, number: Any, kind: type, value: Any) -> None:
    """Check that a number is finite and has its type. The message shows the whole value of the setting."""
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}.")
    if isinstance(number, bool) or not isinstance(number, int if kind is int else int | float):
        raise ValueError(f"{name} must be {_kind(kind)}, got {value!r}.")


def _kind(kind: type) -> str:
    return "a whole number" if kind is int else "a number"


def _check_kernel(name: str, value: tuple[float, ...]) -> None:
    if len(value) % 2 == 0 or min(value) < 0 or sum(value) <= 0:
        raise ValueError(f"{name} needs an odd number of non-negative values, not all 0, got {value}.")


def check_resolutions(base: int, finest: int) -> None:
    """Check that the finest level of a hash grid is at least as fine as the first level.

    Raises:
        ValueError: If `finest` is less than `base`.
    """
    if finest < base:
        raise ValueError(f"max_resolution must be at least base_resolution={base}, got {finest}.")


def parse_settings(config: type, assignments: Iterable[str]) -> dict[str, Any]:
    """Parse assignments, such as `lambda_normal=1` or `camera_radius=2.4,2.6`, and check each value on its own.

    Args:
        config: See `settings_of`.
        assignments: Texts of the form `KEY=VALUE`.

    Returns:
        Values by the name of the setting.

    Raises:
        ValueError: If an assignment has another form, the name is unknown or occurs twice, or the value is invalid.
    """
    known, values = settings_of(config), {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"Settings have the form KEY=VALUE, such as eta=0.5, got {assignment!r}.")
        if name not in known:
            nearest = ", ".join(get_close_matches(name, known, n=3, cutoff=0.4))
            hint = f"The nearest names are {nearest}." if nearest else "--list-settings prints all names."
            raise ValueError(f"Unknown setting {name!r}. {hint}")
        if name in values:
            raise ValueError(f"{name} is set twice. Omit one of the two values.")
        values[name] = known[name].parse(text)
    return values


def format_value(value: Any) -> str:
    """Return a short text that `Setting.parse` converts back to the value."""
    if isinstance(value, tuple):
        return ",".join(map(format_value, value))
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}".replace("e+0", "e").replace("e-0", "e-")
    return short if float(short) == value else str(value)


def settings_table(config: type) -> str:
    """Return the reference table in Markdown: a heading and a table for each group.

    Args:
        config: See `settings_of`.
    """
    lines, group = [], None
    for one in settings_of(config).values():
        if one.group != group:
            group = one.group
            lines += ["", f"### {group}", "", "| name | default | range | description |", "|---|---|---|---|"]
        lines.append(f"| `{one.name}` | {format_value(one.default)} | {one.range_text()} | {one.help} |")
    return "\n".join(lines[1:]) + "\n"


def settings_text(config: type) -> str:
    """Return the reference table as plain text: name, default and range in columns, and the help text below.

    Args:
        config: See `settings_of`.
    """
    settings = settings_of(config).values()
    names, defaults = max(len(one.name) for one in settings), max(len(format_value(one.default)) for one in settings)
    lines, group = [], None
    for one in settings:
        if one.group != group:
            group = one.group
            lines += ["", f"{group}:"]
        lines.append(f"  {one.name:{names}}  {format_value(one.default):{defaults}}  {one.range_text()}")
        lines.append(f"      {one.help}")
    return "\n".join(lines[1:]) + "\n"
