"""Checkpoint files in the safetensors format: optimizer state as plain tensors, without pickle."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .files import atomically
from .layout import MOMENTS, Spec, check_layout, layout_of, optimizer_layout
from .migration import current_metadata, current_tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Flatten the state of an optimizer: `"3.exp_avg"` is the first moment of parameter number 3."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, row in state.items() for name, value in row.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load the result of `optimizer_tensors` into an optimizer of the same parameters in the same order.

    Raises:
        LayoutError: If a tensor does not have the shape and data type of the optimizer's state.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    moments = getattr(optimizer, "moments", MOMENTS)
    check_layout(
        layout_of(tensors),
        optimizer_layout((Spec(tuple(value.shape), value.dtype) for value in parameters), tensors, moments),
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    state = dict(sorted(state.items()))  # The order of Adam's own state.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class NotFiniteError(ValueError):
    """Error for a tensor with an infinite or NaN value."""


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that all tensors are finite.

    Raises:
        NotFiniteError: If a tensor is not finite. The message names the first such tensor.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            # The extremes are NaN if a value is NaN. `isfinite` would need memory for a mask of all values.
            low, high = (extreme.item() for extreme in value.detach().aminmax())
            if not math.isfinite(low) or not math.isfinite(high):
                raise NotFiniteError(f"{name} is not finite: its values range from {low:g} to {high:g}.")


def write_atomically(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata atomically to a safetensors file.

    Raises:
        NotFiniteError: If a tensor is not finite. The previous file is kept.
    """
    # A fixed name, so that repeatedly killed runs leave at most one partial file.
    partial = path.with_name(path.name + ".partial")
    contiguous = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    check_finite(contiguous)
    save_file(contiguous, partial, metadata={"facts": json.dumps(metadata)})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_text_atomically(path: Path, text: str) -> None:
    """Write text atomically to a file. With several writers at once, the last write wins."""
    with atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a file that `write_atomically` wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {})["facts"])
    return current_tensors(load_file(path)), current_metadata(metadata)


def with_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors with `prefix/` in front of their names."""
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with `prefix/`, without the prefix."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in tensors.items() if key.startswith(f"{prefix}/")}
