"""Checks of tensor names, shapes and data types in a file, before the tensors are read.

The header of a safetensors file lists names, shapes and data types. A file with another layout is rejected without
reading any weights.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .migration import current_tensors


class Spec(NamedTuple):
    """Shape and data type of a tensor.

    Args:
        shape: Sizes of the axes; `None` stands for any positive size.
        dtype: Data type; `None` for an unsupported type.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype | None = torch.float32

    def fits(self, found: "Spec") -> bool:
        """Return whether an actual spec `found` fits this expected spec."""
        if len(self.shape) != len(found.shape):
            return False
        axes = zip(self.shape, found.shape, strict=True)
        return found.dtype == self.dtype and all(have == want or (want is None and have) for want, have in axes)

    def __str__(self) -> str:
        axes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"({axes}) {str(self.dtype).removeprefix('torch.')}"


Layout = dict[str, Spec]
# Data types by their names in safetensors. A tensor of any other type matches no layout.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MOMENTS = ("exp_avg", "exp_avg_sq")  # State of Adam and AdamW.


class LayoutError(ValueError):
    """Error for tensors that are missing, unknown, or of another shape or data type."""


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """Return the layout of tensors."""
    return {name: Spec(tuple(value.shape), value.dtype) for name, value in tensors.items()}


def read_layout(path: str | Path) -> Layout:
    """Read the layout of a safetensors file from its header, with the current tensor names."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        specs = {name: Spec(tuple(part.get_shape()), DTYPES.get(part.get_dtype())) for name, part in slices.items()}
    return current_tensors(specs)


def check_layout(found: Mapping[str, Spec], expected: Mapping[str, Spec]) -> None:
    """Check a layout.

    Args:
        found: Actual layout.
        expected: Expected layout.

    Raises:
        LayoutError: If a tensor is missing, unknown, or of another shape or data type. The message names the first
            such tensor.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise LayoutError(f"{name} is missing, expected {expected[name]}")
        if name not in expected:
            raise LayoutError(f"{name} is unknown")
        if not expected[name].fits(found[name]):
            raise LayoutError(f"{name} must be {expected[name]}, got {found[name]}")


def prefixed(prefix: str, layout: Mapping[str, Spec]) -> Layout:
    """Return a layout with `prefix/` in front of the names."""
    return {f"{prefix}/{name}": spec for name, spec in layout.items()}


def unprefixed(prefix: str, layout: Mapping[str, Spec]) -> Layout:
    """Return the part of a layout whose names begin with `prefix/`, without the prefix."""
    return {name.removeprefix(f"{prefix}/"): s for name, s in layout.items() if name.startswith(f"{prefix}/")}


def optimizer_layout(parameters: Iterable[Spec], found: Iterable[str], moments: tuple[str, ...] = MOMENTS) -> Layout:
    """Return the expected layout of `checkpoint.optimizer_tensors`.

    The check is needed, because a fused optimizer step does not check shapes and would write beyond the end of a
    shorter tensor.

    Args:
        parameters: Parameters of the optimizer, in order.
        found: Names of the tensors in the file. A parameter that never had a gradient has no state in the file. All
            other parameters have the full state.
        moments: Names of the state tensors with the shape of the parameter. The state also has a step count.
    """
    begun = {name.partition(".")[0] for name in found}
    expected = {}
    for index, parameter in enumerate(parameters):
        if str(index) in begun:
            expected[f"{index}.step"] = Spec(())
            expected |= {f"{index}.{name}": parameter for name in moments}
    return expected


def module_layout(module: nn.Module) -> Layout:
    """Return the layout of a module's state dict. The module may be on the meta device."""
    return layout_of(module.state_dict())
