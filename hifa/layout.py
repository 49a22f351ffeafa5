"""What tensors a file must have, compared with what it has before anything is built with them.

Shapes and types are in the header of a safetensors file; no weight is read for a file of another layout.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Spec(NamedTuple):
    """Shape and type of a tensor.

    Args:
        shape: `None` stands for any positive size of an axis.
        dtype: `None` for a type that no file of ours has.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype | None = torch.float32

    def fits(self, found: "Spec") -> bool:
        if len(self.shape) != len(found.shape):
            return False
        axes = zip(self.shape, found.shape, strict=True)
        return found.dtype == self.dtype and all(have == want or (want is None and have > 0) for want, have in axes)

    def __str__(self) -> str:
        axes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"({axes}) {str(self.dtype).removeprefix('torch.')}"


Layout = dict[str, Spec]
# By their names in safetensors; a tensor of another type fits nothing.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam and AdamW


class LayoutError(ValueError):
    """Tensors are missing, unknown, or of another shape or type."""


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    return {name: Spec(tuple(value.shape), value.dtype) for name, value in tensors.items()}


def read_layout(path: str | Path) -> Layout:
    """The layout of a safetensors file, by its header alone."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        return {name: Spec(tuple(part.get_shape()), DTYPES.get(part.get_dtype())) for name, part in slices.items()}


def check_layout(found: Mapping[str, Spec], expected: Mapping[str, Spec]) -> None:
    """
    Raises:
        LayoutError: Naming the first tensor that is missing, unknown, or of another shape or type.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise LayoutError(f"{name} is missing, {expected[name]}")
        if name not in expected:
            raise LayoutError(f"{name} is not known")
        if not expected[name].fits(found[name]):
            raise LayoutError(f"{name} must be {expected[name]}, and is {found[name]}")


def prefixed(prefix: str, layout: Mapping[str, Spec]) -> Layout:
    return {f"{prefix}/{name}": spec for name, spec in layout.items()}


def unprefixed(prefix: str, layout: Mapping[str, Spec]) -> Layout:
    return {name.removeprefix(f"{prefix}/"): s for name, s in layout.items() if name.startswith(f"{prefix}/")}


def optimizer_layout(parameters: Iterable[Spec], found: Iterable[str], moments: tuple[str, ...] = MOMENTS) -> Layout:
    """What `state.optimizer_tensors` has of an optimizer. A fused step trusts the shapes: it would write beyond the
    end of a shorter tensor.

    Args:
        parameters: Of the optimizer, in its order.
        found: Names in the file. Parameters that never had a gradient have no state, all others all of it.
        moments: Names of what the optimizer keeps for each value of a parameter; it counts its steps besides.
    """
    begun = {name.partition(".")[0] for name in found}
    expected = {}
    for index, parameter in enumerate(parameters):
        if str(index) in begun:
            expected[f"{index}.step"] = Spec(())
            expected |= {f"{index}.{name}": parameter for name in moments}
    return expected


def module_layout(module: nn.Module) -> Layout:
    """Of its state dict; the module may be on the meta device."""
    return layout_of(module.state_dict())
